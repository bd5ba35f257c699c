# Lite-DINO Swin-T:
#   python main.py -c config/DINO/DINO_4scale_swinT.py --coco_path DIR --options num_expansion=3 enc_scale=3
# The backbone starts from ImageNet-1k weights; backbone_dir=DIR reads swin_tiny_patch4_window7_224.pth from there.
_base_ = ['DINO_4scale.py']

backbone = 'swin_T_224_1k'
use_checkpoint = True
