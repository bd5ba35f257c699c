# Lite-DINO Swin-T: python main.py -c config/LiteDINO/swint_h3l1_6p1x1.py --coco_path DIR
# 149 GFLOPs in the paper.
_base_ = ['../DINO/DINO_4scale_swinT.py']

num_expansion = 1
enc_scale = 3
