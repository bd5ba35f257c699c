# Lite-DINO Swin-T: python main.py -c config/LiteDINO/swint_h3l1_2p1x3.py --coco_path DIR
# 159 GFLOPs in the paper.
_base_ = ['../DINO/DINO_4scale_swinT.py']

num_expansion = 3
enc_scale = 3
