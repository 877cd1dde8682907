"""Pictures, measurements and widgets of the super-resolution notebooks.

    from vtlib.teach import superres

    superres.flow_strip(frames, flows, titles)      # frames, flows in colours, and the colour wheel
    superres.film_strip(frames, titles, boxes)      # frames with tokens framed
    superres.units(picture)                         # large pixel, small pixel, token
    superres.follow_a_token(net, clips, start, alt).show()
    superres.features.colours(coarse, dense)        # maps of features, coloured alike
    superres.marked(ax, photo, "one piece", own=piece)  # tokens of a piece on the photograph
    with superres.swapped(grouping=superres.random_pieces):  # a CATANet without its grouping
        large = net(small)

Drawings return a Figure for `teach.show`, or draw on the axes they get. `clips` and `trials` hold
what an experiment needs beside its idea: clips that keep their course, windows of frames, a net
without its attention, methods on tests.
`features` holds the best averages and masks by a linear probe.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".clips": ("addresses", "agreement", "agreements", "best_match", "best_matches",
               "content_place", "moved_photographs", "straight_pans", "texture"),
    ".plots": ("agreement_figure", "contributions", "crops", "match_by_motion", "more_frames"),
    ".groups": ("coverage", "group_map", "marked"),
    ".measures": ("attention_flops", "companions_kept", "explained", "fastest", "in_window"),
    ".switches": ("constant_attention", "decibels", "keys_in_use", "moved_centres",
                  "other_centres", "random_pieces", "scanned_backwards", "swapped", "switched_off",
                  "with_centres", "without_look_ahead"),
    ".flows": ("enlarged", "flow_picture", "flow_strip", "wheel"),
    ".panels": ("follow_a_token", "traced", "window_lengths"),
    ".tokens": ("address_rows", "cosine_bars", "film_strip", "house_bars", "patch_sizes",
                "picture_strip", "token_box", "trace_figure", "units"),
    ".trials": ("Trials", "attention_off", "away_from_home", "by_windows", "middle_frame",
                "pushed", "said", "search_times", "verdict", "windows"),
})
