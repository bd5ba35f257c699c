# DINO-4scale R50, with the original encoder: python main.py -c config/DINO/baseline_4scale.py --coco_path DIR
# COCO AP in its paper: 49.0 after 12 epochs. 235 GFLOPs in the Lite DETR paper. DINO's released checkpoints load.
_base_ = ['DINO_4scale.py']

num_expansion = None
