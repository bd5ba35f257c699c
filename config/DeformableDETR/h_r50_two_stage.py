# H-DETR R50 (H-Deformable-DETR): python main.py -c config/DeformableDETR/h_r50_two_stage.py --coco_path DIR
# COCO AP in its repository: 48.7 after 12 epochs. Its released checkpoints load.
_base_ = ['r50_two_stage.py']

dim_feedforward = 2048
dropout = 0.0
mixed_selection = True
look_forward_twice = True
num_queries_one2many = 1500
k_one2many = 6
lambda_one2many = 1.0

epochs = 12
lr_drop = 11
