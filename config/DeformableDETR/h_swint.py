# H-DETR Swin-T: python main.py -c config/DeformableDETR/h_swint.py --coco_path DIR
# COCO AP in its repository: 50.6 after 12 epochs. 234 GFLOPs in the Lite DETR paper.
_base_ = ['h_r50_two_stage.py']

backbone = 'swin_T_224_1k'
use_checkpoint = True
