# Lite-DINO Swin-T on your own data, from a COCO checkpoint where you have one:
#   python main.py -c config/finetune/swint.py --coco_path DIR --pretrain_model_path CHECKPOINT
_base_ = ['../LiteDINO/swint_h3l1_2p1x3.py', 'schedule.py']
