# Lite-DINO R50 H3L1-(2+1)x3: python main.py -c config/LiteDINO/r50_h3l1_2p1x3.py --coco_path DIR
# COCO AP in the paper: 50.4 after 36 epochs, 151 GFLOPs.
_base_ = ['../DINO/DINO_4scale.py']

num_expansion = 3
enc_scale = 3
