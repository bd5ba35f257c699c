# Lite H-DETR Swin-T H3L1-(2+1)x3:
#   python main.py -c config/DeformableDETR/lite_h_swint_h3l1_2p1x3.py --coco_path DIR
# 152 GFLOPs in the Lite DETR paper.
_base_ = ['h_swint.py']

num_expansion = 3
enc_scale = 3
