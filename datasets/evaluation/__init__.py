"""Evaluation of detections: what datasets.coco_eval summarizes, computed from arrays by one of several programs."""
