# Lite Deformable DETR R50 (two-stage) H3L1-(2+1)x3:
#   python main.py -c config/DeformableDETR/lite_h3l1_2p1x3.py --coco_path DIR
# 123 GFLOPs in the Lite DETR paper.
_base_ = ['r50_two_stage.py']

num_expansion = 3
enc_scale = 3
