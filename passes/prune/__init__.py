"""Structured pruning of a graph, after training.

Which channels can only go together (``labels``, ``rules``, ``reshapes``, ``coupling``); cutting them out and what
that saves (``removal``, ``cost``); those that cost nothing (``dead``); what the others cost (``scores``,
``sensitivity``, with ``masking``, ``products`` and ``compensation``), and products of a lower rank (``low_rank``);
what goes under a budget (``allocation``); and making up for it (``repair``, in torch ``blocks`` and ``distil``, with
``in_torch``). ``pruning`` is the pass. Before it, ``tokens`` and ``resolution`` leave less for every layer to compute
on.
"""
