# Lite H-DETR R50 H3L1-(2+1)x3:
#   python main.py -c config/DeformableDETR/lite_h_r50_h3l1_2p1x3.py --coco_path DIR
# 142 GFLOPs in the Lite DETR paper.
_base_ = ['h_r50_two_stage.py']

num_expansion = 3
enc_scale = 3
