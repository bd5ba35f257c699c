# Lite-DINO ConvNeXt-XL:
#   python main.py -c config/DINO/DINO_4scale_convnextXL.py --coco_path DIR --options num_expansion=3 enc_scale=3
# num_expansion=None is DINO itself.
# The backbone is timm's, with ImageNet-22k weights; backbone_dir=FILE reads them from a file.
_base_ = ['DINO_4scale.py']

backbone = 'timm:convnext_xlarge.fb_in22k'
use_checkpoint = True
