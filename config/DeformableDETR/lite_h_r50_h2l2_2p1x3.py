# Lite H-DETR R50 H2L2-(2+1)x3:
#   python main.py -c config/DeformableDETR/lite_h_r50_h2l2_2p1x3.py --coco_path DIR
_base_ = ['h_r50_two_stage.py']

num_expansion = 3
enc_scale = 2
