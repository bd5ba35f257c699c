"""The modules of detrex's detectors by name, without behaviour: their state dicts are in detrex's layout."""
from torch import nn


def randomised(module):
    """Its state dict, with random numbers."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            nn.init.normal_(tensor)
    return module.state_dict()


def tree(**children):
    """A module with these children."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def numbered(*modules):
    return nn.ModuleList(modules)


def linears(*sizes):
    return numbered(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))


def convolution(*arguments):
    convolution = nn.Conv2d(*arguments, bias=False)
    convolution.norm = nn.BatchNorm2d(arguments[1])
    return convolution


def resnet18():
    def block(before, channels):
        parts = {"conv1": convolution(before, channels, 3), "conv2": convolution(channels, channels, 3)}
        if before != channels:
            parts["shortcut"] = convolution(before, channels, 1)
        return tree(**parts)

    sizes = (64, 64, 128, 256, 512)
    stages = {f"res{i + 1}": numbered(block(a, b), block(b, b)) for i, (a, b) in enumerate(zip(sizes, sizes[1:]), 1)}
    return tree(stem=tree(conv1=convolution(3, 64, 7)), **stages)


def deformable_attention(dim, heads, levels, points):
    return tree(sampling_offsets=nn.Linear(dim, heads * levels * points * 2), value_proj=nn.Linear(dim, dim),
                attention_weights=nn.Linear(dim, heads * levels * points), output_proj=nn.Linear(dim, dim))


def attention(dim):
    return tree(attn=nn.MultiheadAttention(dim, 1))


def layer(dim, hidden, *attentions):
    feed_forward = tree(layers=nn.Sequential(nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout()),
                                             nn.Linear(hidden, dim), nn.Dropout()))
    norms = numbered(*(nn.LayerNorm(dim) for _ in range(len(attentions) + 1)))
    return tree(attentions=numbered(*attentions), ffns=numbered(feed_forward), norms=norms)


def deformable_parts(dim, hidden, depth, channels, levels):
    def projection(before, size):
        return tree(conv=nn.Conv2d(before, dim, size), norm=nn.GroupNorm(1, dim))

    extra = [projection(channels[-1] if i == len(channels) else dim, 3) for i in range(len(channels), levels)]
    neck = tree(convs=numbered(*(projection(c, 1) for c in channels)), extra_convs=numbered(*extra))
    sampling = (dim, 8, levels, 4)
    encoder = tree(layers=numbered(*(layer(dim, hidden, deformable_attention(*sampling)) for _ in range(depth))))
    decoder = tree(layers=numbered(*(layer(dim, hidden, attention(dim), deformable_attention(*sampling))
                                     for _ in range(depth))))
    transformer = tree(encoder=encoder, decoder=decoder)
    transformer.level_embeds = nn.Parameter(nn.Embedding(levels, dim).weight.detach())
    return neck, transformer


def dino(dim=64, hidden=32, depth=2, classes=80, queries=20):
    neck, transformer = deformable_parts(dim, hidden, depth, (128, 256, 512), 4)
    transformer.add_module("tgt_embed", nn.Embedding(queries, dim))
    transformer.add_module("enc_output", nn.Linear(dim, dim))
    transformer.add_module("enc_output_norm", nn.LayerNorm(dim))
    heads = {"class_embed": numbered(*(nn.Linear(dim, classes) for _ in range(depth + 1))),
             "bbox_embed": numbered(*(tree(layers=linears(dim, dim, dim, 4)) for _ in range(depth + 1)))}
    for name, head in heads.items():
        transformer.decoder.add_module(name, head)
    transformer.decoder.add_module("norm", nn.LayerNorm(dim))
    transformer.decoder.add_module("ref_point_head", tree(layers=linears(2 * dim, dim, dim)))
    return tree(backbone=resnet18(), neck=neck, transformer=transformer, label_enc=nn.Embedding(classes, dim), **heads)


def deformable_detr(dim=64, hidden=32, depth=2, classes=80, queries=20):
    neck, transformer = deformable_parts(dim, hidden, depth, (128, 256, 512), 4)
    transformer.add_module("reference_points", nn.Linear(dim, 2))
    head, box_head = nn.Linear(dim, classes), tree(layers=linears(dim, dim, dim, 4))  # of all layers
    return tree(backbone=resnet18(), neck=neck, transformer=transformer, query_embedding=nn.Embedding(queries, 2 * dim),
                class_embed=numbered(*[head] * depth), bbox_embed=numbered(*[box_head] * depth))


def detr(dim=64, hidden=32, depth=2, classes=80, queries=20):
    encoder = tree(layers=numbered(*(layer(dim, hidden, attention(dim)) for _ in range(depth))))
    decoder = tree(layers=numbered(*(layer(dim, hidden, attention(dim), attention(dim)) for _ in range(depth))),
                   post_norm_layer=nn.LayerNorm(dim))
    return tree(backbone=resnet18(), input_proj=nn.Conv2d(512, dim, 1), query_embed=nn.Embedding(queries, dim),
                transformer=tree(encoder=encoder, decoder=decoder), class_embed=nn.Linear(dim, classes + 1),
                bbox_embed=tree(layers=linears(dim, dim, dim, 4)))
