# Lite H-DETR Swin-T H2L2-(2+1)x3:
#   python main.py -c config/DeformableDETR/lite_h_swint_h2l2_2p1x3.py --coco_path DIR
# 131 GFLOPs in the Lite DETR paper.
_base_ = ['h_swint.py']

num_expansion = 3
enc_scale = 2
