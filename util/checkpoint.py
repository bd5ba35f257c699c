def load_weights(model, ck, strict=True):
    model.load_state_dict({k:v for k,v in ck["model"].items() if k in model.state_dict() or 'query_proj' not in k})
