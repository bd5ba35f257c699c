# Lite-DINO R50 H2L2-(2+1)x3: python main.py -c config/LiteDINO/r50_h2l2_2p1x3.py --coco_path DIR
# COCO AP in the paper: 49.9 after 36 epochs, 130 GFLOPs.
# The published README gives enc_scale=1 for this row. The paper's GFLOPs, its "5 % of the tokens" and the released
# checkpoint's name (r50_s2ex3) all say 2.
_base_ = ['../DINO/DINO_4scale.py']

num_expansion = 3
enc_scale = 2
