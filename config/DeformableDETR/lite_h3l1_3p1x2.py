# Lite Deformable DETR R50 (two-stage) H3L1-(3+1)x2:
#   python main.py -c config/DeformableDETR/lite_h3l1_3p1x2.py --coco_path DIR
# 119 GFLOPs in the Lite DETR paper.
_base_ = ['r50_two_stage.py']

num_expansion = 2
enc_scale = 3
