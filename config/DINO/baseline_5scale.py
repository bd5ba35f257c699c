# DINO-5scale R50: python main.py -c config/DINO/baseline_5scale.py --coco_path DIR
# COCO AP in its paper: 49.4 after 12 epochs. The fifth level is the backbone's map of stride 4.
_base_ = ['baseline_4scale.py']

return_interm_indices = [0, 1, 2, 3]
num_feature_levels = 5
