# The demo: a small Lite-DINO on the synthetic set, for two CPU cores. `make demo` runs it.
_base_ = ['../DINO/DINO_4scale.py']

num_classes = 'auto'
dn_labelbook_size = None

backbone = 'timm:tf_efficientnet_lite0'
backbone_freeze_keywords = ['conv_stem', 'blocks.0.', 'blocks.1.']  # up to stride 4: the dearest to train
return_interm_indices = [1, 2, 3]
num_feature_levels = 3
hidden_dim = 128
nheads = 4
dim_feedforward = 256
enc_layers = 2
num_expansion = 1
enc_scale = 2
dec_layers = 3
num_queries = 60
num_select = 100
dn_number = 20

data_aug_scales = [160, 176, 192, 208, 224]
data_aug_max_size = 272
data_aug_scales2_resize = [208, 240, 272]
data_aug_scales2_crop = [144, 208]

lr = 4e-4
lr_backbone = 1e-4
batch_size = 4
eval_batch_size = 4
epochs = 8
onecyclelr = True
clip_max_norm = 1.0
save_checkpoint_interval = 100
eval_interval = 2
use_ema = True
ema_decay = 0.99
