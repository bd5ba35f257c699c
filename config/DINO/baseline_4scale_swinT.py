# DINO-4scale Swin-T: python main.py -c config/DINO/baseline_4scale_swinT.py --coco_path DIR
# 243 GFLOPs in the Lite DETR paper.
_base_ = ['DINO_4scale_swinT.py']

num_expansion = None
