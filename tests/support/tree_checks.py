"""A tree against the reference."""

from reference import ReferenceGroup

from lambda_grpo import ProcessTree


def assert_equals_reference(tree: ProcessTree, reference: ReferenceGroup) -> None:
    """Every process set, span, parent and leaf is the literal definition's."""
    completions = reference.completions
    members = [
        frozenset(tree.order[first : first + size].tolist())
        for first, size in zip(tree.first, tree.size, strict=True)
    ]
    assert set(members) == reference.tree()
    assert len(set(members)) == tree.num_steps
    for node, process_set in enumerate(members):
        assert (tree.start[node], tree.end[node]) == reference.span(process_set)
        above = [other for other in members if other > process_set]
        smallest = min(above, key=len, default=None)
        assert tree.parent[node] == (members.index(smallest) if smallest else -1)
        assert tree.depth[node] == len(above)
    sizes = tree.set_sizes()
    assert sizes.shape == (len(completions), max(map(len, completions)))
    for i, y in enumerate(completions):
        assert tree.lengths[i] == len(y)
        assert members[tree.leaf[i]] == (reference.process_set(i, len(y) - 1) if y else members[0])
        for t in range(len(y)):
            process_set = reference.process_set(i, t)
            assert members[tree.step_index[i, t]] == process_set
            assert sizes[i, t] == len(process_set)
        assert (tree.step_index[i, len(y) :] == -1).all()
        assert (sizes[i, len(y) :] == 0).all()
