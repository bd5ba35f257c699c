# Lite-DINO R50 H3L1-(6+1)x1: python main.py -c config/LiteDINO/r50_h3l1_6p1x1.py --coco_path DIR
# COCO AP in the paper: 50.2 after 36 epochs, 141 GFLOPs.
_base_ = ['../DINO/DINO_4scale.py']

num_expansion = 1
enc_scale = 3
