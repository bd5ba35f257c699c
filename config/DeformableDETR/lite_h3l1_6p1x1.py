# Lite Deformable DETR R50 (two-stage) H3L1-(6+1)x1:
#   python main.py -c config/DeformableDETR/lite_h3l1_6p1x1.py --coco_path DIR
# 115 GFLOPs in the Lite DETR paper.
_base_ = ['r50_two_stage.py']

num_expansion = 1
enc_scale = 3
