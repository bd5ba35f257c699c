# Lite H-DETR Swin-T H3L1-(6+1)x1:
#   python main.py -c config/DeformableDETR/lite_h_swint_h3l1_6p1x1.py --coco_path DIR
# 142 GFLOPs in the Lite DETR paper.
_base_ = ['h_swint.py']

num_expansion = 1
enc_scale = 3
