# Deformable DETR R50 with iterative box refinement:
#   python main.py -c config/DeformableDETR/r50_refine.py --coco_path DIR
# COCO AP in its paper: 45.4 after 50 epochs.
_base_ = ['r50.py']

with_box_refine = True
