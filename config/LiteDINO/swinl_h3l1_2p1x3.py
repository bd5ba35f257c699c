# Lite-DINO Swin-L H3L1-(2+1)x3:
#   python main.py -c config/LiteDINO/swinl_h3l1_2p1x3.py --coco_path DIR
_base_ = ['../DINO/DINO_4scale_swinL.py']

num_expansion = 3
enc_scale = 3
