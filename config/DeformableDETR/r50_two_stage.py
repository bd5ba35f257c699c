# Two-stage Deformable DETR R50: python main.py -c config/DeformableDETR/r50_two_stage.py --coco_path DIR
# COCO AP in its paper: 46.2 after 50 epochs.
_base_ = ['r50_refine.py']

two_stage = True
