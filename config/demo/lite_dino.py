# The demo: a small Lite-DINO on the synthetic set. `make demo` runs it: val AP 0.653 in 12 minutes on two CPU cores;
# docs/benchmarks/recipes.md says why it has this shape.
_base_ = ['../DINO/DINO_4scale.py']

num_classes = 'auto'
dn_labelbook_size = None

# strides 8, 16 and 32, the last without the backbone's last stage; the first stages are the most expensive to train
backbone = 'timm:tf_efficientnet_lite0'
backbone_freeze_keywords = ['conv_stem', 'blocks.0.', 'blocks.1.', 'blocks.2.']
return_interm_indices = [1, 2]
num_feature_levels = 3

hidden_dim = 128
nheads = 4
dim_feedforward = 256
enc_layers = 2
num_expansion = 1
enc_scale = 2
dec_layers = 4
classification = 'mal'
num_queries = 60
num_select = 100
nms_iou_threshold = 0.7  # such a short training leaves duplicates
dn_number = 60

# one size and no crops: with these a short training learns fastest
data_aug_scales = [256]
data_aug_max_size = 256
data_aug_scales2_resize = [256]
data_aug_scales2_crop = [999, 999]
eval_size_factor = 1.125

lr = 1e-3
lr_backbone = 2e-4
onecyclelr = True
clip_max_norm = 1.0
batch_size = 4
eval_batch_size = 4
epochs = 9
eval_interval = 5
save_checkpoint_interval = 100
use_ema = True
ema_decay = 0.99
