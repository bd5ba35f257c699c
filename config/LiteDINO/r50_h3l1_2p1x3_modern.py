# Lite-DINO R50 H3L1-(2+1)x3, trained as papers after it recommend; the same detector, at the same cost. 12 epochs:
#   python main.py -c config/LiteDINO/r50_h3l1_2p1x3_modern.py --coco_path DIR
# 24 epochs, with denser images in their first half:
#   ... --options epochs=24 lr_drop=20 data_aug_mosaic=0.5 data_aug_mixup=0.5
# Nobody has trained this combination on COCO here. DINO R50 has AP 49.0 after 12 epochs; their authors report for it:
_base_ = ['r50_h3l1_2p1x3.py']

classification = 'ia_bce'  # Align-DETR: 50.3 (DEIM's 'mal' and Stable-DINO's 'position', 50.4, are alternatives)
one2many = 'shared'  # MS-DETR; a successor, Mr. DETR, reports 50.9 to 51.4
k_one2many = 6
param_dict_type = 'ddetr_in_mmdet'  # Deformable DETR's lower rate for sampling offsets; detrex: 49.2 -> 49.8
