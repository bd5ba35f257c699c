# Lite-DINO R50 on COCO:
#   python main.py -c config/DINO/DINO_4scale.py --coco_path DIR --options num_expansion=3 enc_scale=3
# AP in the paper: 50.4 (num_expansion=3 enc_scale=3), 50.2 (num_expansion=1 enc_scale=3), 49.9 (num_expansion=3
# enc_scale=2). config/LiteDINO/ has one file for each.
_base_ = ['coco_transformer.py']

modelname = 'dino'
num_classes = 91  # the largest COCO category id is 90

# optimisation
lr = 0.0001
lr_backbone = 1e-05
lr_backbone_names = ['backbone.0']
param_dict_type = 'default'
lr_linear_proj_names = ['reference_points', 'sampling_offsets']
lr_linear_proj_mult = 0.1
batch_size = 2
weight_decay = 0.0001
clip_max_norm = 0.1
epochs = 12
lr_drop = 11
save_checkpoint_interval = 1

# backbone
backbone = 'resnet50'
return_interm_indices = [1, 2, 3]
backbone_freeze_keywords = None
use_checkpoint = False
dilation = False
position_embedding = 'sine'
pe_temperatureH = 20
pe_temperatureW = 20

# interleaved encoder with key-aware deformable attention
enc_layers = 6
enc_n_points = 4
num_expansion = 3
enc_scale = 3
small_expand = True
key_aware = None  # on where the encoder is interleaved
proj_key = False
same_loc = False
deformable_use_checkpoint = False
num_feature_levels = 4
hidden_dim = 256
nheads = 8
dim_feedforward = 2048
dropout = 0.0
transformer_activation = 'relu'

# two-stage decoder
dec_layers = 6
dec_n_points = 4
num_queries = 900
embed_init_tgt = True
dec_pred_bbox_embed_share = True
dec_pred_class_embed_share = True
two_stage_bbox_embed_share = False
two_stage_class_embed_share = False
num_select = 300

# denoising
use_dn = True
dn_number = 100
dn_box_noise_scale = 1.0
dn_label_noise_ratio = 0.5
dn_labelbook_size = 91

# matching and losses
set_cost_class = 2.0
set_cost_bbox = 5.0
set_cost_giou = 2.0
cls_loss_coef = 1.0
bbox_loss_coef = 5.0
giou_loss_coef = 2.0
interm_loss_coef = 1.0
focal_alpha = 0.25
aux_loss = True

# moving average
use_ema = False
ema_decay = 0.9997
ema_epoch = 0
