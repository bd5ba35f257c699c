# Lite-DINO ConvNeXt-XL:
#   python main.py -c config/DINO/DINO_4scale_convnextXL.py --coco_path DIR --options num_expansion=3 enc_scale=3
# num_expansion=None is DINO itself.
# ImageNet-22k weights for the backbone; backbone_dir=DIR reads convnext_xlarge_22k_224.pth from there.
_base_ = ['DINO_4scale.py']

backbone = 'convnext_xlarge_22k'
use_checkpoint = True
