# Lite-DINO Swin-L:
#   python main.py -c config/DINO/DINO_4scale_swinL.py --coco_path DIR --options num_expansion=3 enc_scale=3
# num_expansion=None is DINO itself.
# ImageNet-22k weights for the backbone; backbone_dir=DIR reads swin_large_patch4_window12_384_22k.pth from there.
_base_ = ['DINO_4scale.py']

backbone = 'swin_L_384_22k'
use_checkpoint = True
