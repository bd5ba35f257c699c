# Lite H-DETR R50 H3L1-(6+1)x1:
#   python main.py -c config/DeformableDETR/lite_h_r50_h3l1_6p1x1.py --coco_path DIR
_base_ = ['h_r50_two_stage.py']

num_expansion = 1
enc_scale = 3
