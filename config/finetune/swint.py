# Lite-DINO Swin-T on your own data, from a COCO checkpoint where you have one:
#   python main.py -c config/finetune/swint.py --coco_path DIR --pretrain_model_path CHECKPOINT
_base_ = ['../LiteDINO/swint_h3l1_2p1x3.py', 'schedule.py']

lr = 1e-4
lr_backbone = 1e-5
batch_size = 4
image_size = 640
num_queries = 300
