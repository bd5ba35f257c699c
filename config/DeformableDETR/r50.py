# Deformable DETR R50: python main.py -c config/DeformableDETR/r50.py --coco_path DIR
# COCO AP in its paper: 43.8 after 50 epochs. Its released checkpoints load into this file and its two refinements.
_base_ = ['../DINO/coco_transformer.py']

modelname = 'deformable_detr'
num_classes = 91  # the largest COCO category id is 90

# optimisation
lr = 2e-4
lr_backbone = 2e-5
lr_backbone_names = ['backbone.0']
param_dict_type = 'ddetr_in_mmdet'
lr_linear_proj_names = ['reference_points', 'sampling_offsets']
lr_linear_proj_mult = 0.1
batch_size = 2
weight_decay = 1e-4
clip_max_norm = 0.1
epochs = 50
lr_drop = 40

# backbone
backbone = 'resnet50'
return_interm_indices = [1, 2, 3]
position_embedding = 'sine'
pe_temperatureH = 10000
pe_temperatureW = 10000
pe_centres = True

# encoder and decoder
enc_layers = 6
enc_n_points = 4
dec_layers = 6
dec_n_points = 4
num_feature_levels = 4
hidden_dim = 256
nheads = 8
dim_feedforward = 1024
dropout = 0.1
transformer_activation = 'relu'
num_queries = 300
num_select = 100

# matching and losses
set_cost_class = 2.0
set_cost_bbox = 5.0
set_cost_giou = 2.0
cls_loss_coef = 2.0
bbox_loss_coef = 5.0
giou_loss_coef = 2.0
focal_alpha = 0.25
