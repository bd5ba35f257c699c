# SDETR R50 on COCO, the command of the paper's authors (main.py uses this file if there is no -c):
#   python -m torch.distributed.launch --nproc_per_node=4 --use_env main.py --epochs=150 --lr_drop 100 --coco_path DIR
_base_ = ['../DINO/coco_transformer.py']

modelname = 'sdetr'
num_classes = 91  # the largest COCO category id is 90; "no object" comes on top

# optimisation
lr = 0.0001
lr_backbone = 1e-05
lr_backbone_names = ['backbone']
batch_size = 2
weight_decay = 0.0001
clip_max_norm = 0.1
epochs = 150
lr_drop = 100
save_checkpoint_interval = 10

# backbone
backbone = 'resnet50'
return_interm_indices = [2, 3]  # levels 0 (C4, stride 16) and 1 (C5, stride 32)
dilation = False
position_embedding = 'sine'
pe_temperatureH = 10000
pe_temperatureW = 10000

# two stages: C5, then C4 with a single-head encoder. A list has one entry per stage; a number is for all stages
stage_levels = [[1], [0]]
enc_layers = [3, 3]
enc_nheads = [8, 1]
dec_layers = [3, 3]
nheads = 8  # of the decoders; dec_nheads sets them stage by stage
hidden_dim = 256
dim_feedforward = 2048
dropout = 0.1
pre_norm = False
num_queries = 100
num_select = 100  # with classification = 'focal'; with softmax each query gives a detection

# matching and losses
classification = 'softmax'
eos_coef = 0.1
set_cost_class = 1.0
set_cost_bbox = 5.0
set_cost_giou = 2.0
cls_loss_coef = 1.0
bbox_loss_coef = 5.0
giou_loss_coef = 2.0
aux_loss = True
