"""What the order promises, for any split, seed, streams, batches and hosts."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pipeline.order
from pipeline.host_plans import training_rows
from pipeline.order import ManifestOrder, ReadingState, ShuffledOrder, permutation

SHARD_SAMPLES = [3, 2, 4, 1, 3, 3, 3, 5, 2, 3, 1]  # 30 samples
LARGE = [900] * 111_112  # 100 million samples

splits = st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any)
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 2**24 - 3)
ways = st.fixed_dictionaries({"shuffle_block_shards": st.integers(1, 20), "max_streams": st.integers(1, 20)})
orders = st.builds(lambda split, seed, way: ShuffledOrder(split, seed, **way), splits, seeds, ways)


def for_all(*strategies, max_examples=60):
    """`hypothesis.given`, with the same examples in every run."""
    return lambda test: settings(derandomize=True, deadline=None, max_examples=max_examples)(given(*strategies)(test))


def sequence(order, begin, end):
    """Positions begin .. end - 1 of the endless sequence, woven of the streams' blocks."""
    return [sample for sample, _ in sequence_with_epochs(order, begin, end)]


def sequence_with_epochs(order, begin, end):
    """Pairs (sample, epoch)."""
    streams = [
        ((sample, block.epoch) for block in order.blocks(stream, int(place)) for sample in block.index.tolist())
        for stream, place in enumerate(order.places(begin))
    ]
    return [next(streams[position % order.num_streams]) for position in range(begin, end)]


def host_batches(order, start_step, batch_size, host, num_hosts):
    """A host's slices of the batches from a step on, endless, as the reader of the host engine takes them."""
    loader = SimpleNamespace(load=lambda block: block)
    batches = training_rows(order, loader, batch_size=batch_size, start_step=start_step, host=host, num_hosts=num_hosts)
    for batch in batches:
        yield [sample for block, begin, end in batch for sample in block.index[begin:end].tolist()]


def global_batches(order, start_step, steps, batch_size, num_hosts):
    """The batches of some steps, put together of the slices of all hosts, each of which starts there."""
    slices = []
    for host in range(num_hosts):
        batches = host_batches(order, start_step, batch_size, host, num_hosts)
        slices.append(list(itertools.islice(batches, steps)))
        batches.close()
    return [list(itertools.chain.from_iterable(parts)) for parts in zip(*slices, strict=True)]


@for_all(orders, epochs)
def test_an_epoch_holds_every_sample_once(order, epoch):
    np.testing.assert_array_equal(np.sort(order.indices(epoch)), np.arange(order.samples))


@for_all(orders, epochs)
def test_the_sequence_is_woven_of_the_streams(order, epoch):
    begin = epoch * order.samples
    expected = [*order.indices(epoch), *order.indices(epoch + 1)]
    assert sequence(order, begin, begin + 2 * order.samples) == expected


@for_all(splits, seeds, seeds, epochs, epochs, ways)
def test_order_changes_with_epoch_and_seed(split, seed, other_seed, epoch, other_epoch, way):
    assume(sum(split) >= 16 and seed != other_seed and epoch != other_epoch)
    order = ShuffledOrder(split, seed, **way).indices(epoch).tolist()
    assert order != ShuffledOrder(split, seed, **way).indices(other_epoch).tolist()
    assert order != ShuffledOrder(split, other_seed, **way).indices(epoch).tolist()


@for_all(splits, seeds, ways, st.lists(st.integers(0, 9), max_size=8))
def test_order_is_equal_for_equal_arguments_whatever_was_asked_before(split, seed, way, asked_before):
    used = ShuffledOrder(split, seed, **way)
    for epoch in asked_before:
        used.block(used.num_streams - 1, epoch, 0)
    np.testing.assert_array_equal(used.indices(3), ShuffledOrder(tuple(split), seed, **way).indices(3))


def test_order_is_the_same_on_every_machine_and_version():
    # Recorded here: runs resumed after an update rely on them. That the words which are sorted are those of
    # Random123 and of TensorFlow is tested in test_philox.py and test_graph_reading.py.
    assert permutation(8, seed=3, epoch=1).tolist() == [2, 1, 7, 6, 0, 4, 5, 3]
    assert permutation(8, seed=2**63 - 1, epoch=2**24 - 1, stream=8, block=5).tolist() == [5, 2, 6, 1, 3, 4, 7, 0]
    eight_streams = ShuffledOrder(SHARD_SAMPLES, seed=7)
    two_streams = ShuffledOrder(SHARD_SAMPLES, seed=7, shuffle_block_shards=6, max_streams=2)
    assert " ".join(map(str, eight_streams.indices(2))) == (
        "2 8 27 4 29 22 9 12 6 17 26 15 24 21 11 1 7 18 28 13 25 23 10 0 5 16 3 14 19 20"
    )
    assert " ".join(map(str, two_streams.indices(2))) == (
        "21 27 22 26 24 7 19 16 20 18 23 6 29 8 25 17 2 5 9 28 1 4 11 3 0 13 10 15 12 14"
    )


def test_permutations_of_different_names_differ():
    names = itertools.product((0, 1, 2**62), (0, 1, 2**20), (0, 1, 2**15), (0, 1, 2**20))
    drawn = {tuple(permutation(30, seed=s, epoch=e, stream=t, block=b)) for s, e, t, b in names}
    assert len(drawn) == 3**4


@pytest.mark.parametrize("split", [[4], [1, 1, 1, 1]])  # one block; four blocks of one sample
def test_all_orders_of_a_few_samples_are_equally_frequent(split):
    order = ShuffledOrder(split, seed=0, shuffle_block_shards=1)
    found, counts = np.unique([order.indices(epoch) for epoch in range(720)], axis=0, return_counts=True)
    assert len(found) == math.factorial(4)
    assert np.sum((counts - 30) ** 2 / 30) < 49.7  # chi-square with 23 degrees of freedom: 1 in 1000 is above


@pytest.mark.parametrize("max_streams", [1, 4])
def test_every_sample_comes_at_any_time_of_an_epoch(max_streams):
    order = ShuffledOrder([2] * 8, seed=0, shuffle_block_shards=4, max_streams=max_streams)
    counts = np.zeros((16, 16))  # (sample, position)
    for epoch in range(320):
        counts[order.indices(epoch), np.arange(16)] += 1
    assert np.all(np.sum((counts - 20) ** 2 / 20, axis=1) < 44.3)  # 15 degrees of freedom: 1 in 10,000 is above


@pytest.mark.parametrize(
    "shards, way, expected",
    [
        (100, {}, (8, 1)),
        (100, {"shuffle_block_shards": 32}, (8, 4)),
        (100, {"shuffle_block_shards": 32, "max_streams": 32}, (32, 1)),
        (100, {"shuffle_block_shards": 12}, (4, 3)),  # 8 does not divide 12
        (100, {"shuffle_block_shards": 18, "max_streams": 6}, (6, 3)),
        (100, {"shuffle_block_shards": 8, "max_streams": 5}, (2, 4)),
        (7, {}, (4, 2)),
        (1, {}, (1, 8)),
        (100, {"shuffle_block_shards": 1}, (1, 1)),
    ],
)
def test_number_of_streams_and_shards_of_a_block(shards, way, expected):
    order = ShuffledOrder([0] + [2] * shards + [0], seed=0, **way)
    assert (order.num_streams, order.shards_per_block) == expected


@for_all(orders, epochs, st.data())
def test_a_block_holds_few_shards_and_names_rows_of_them(order, epoch, data):
    stream = data.draw(st.integers(0, order.num_streams - 1))
    blocks = [order.block(stream, epoch, number) for number in range(order.num_blocks(stream, epoch))]
    first_of_shard = np.cumsum(order.shard_samples) - order.shard_samples
    for block in blocks:
        assert block.epoch == epoch and 1 <= len(block.shards) <= order.shards_per_block
        assert set(block.slot) == set(range(len(block.shards)))  # no shard is read for nothing
        shard = block.shards[block.slot]
        assert np.all((block.row >= 0) & (block.row < order.shard_samples[shard]))
        np.testing.assert_array_equal(block.index, first_of_shard[shard] + block.row)
    assert sum(len(block.index) for block in blocks) == order.stream_samples(stream, epoch)


@for_all(orders, epochs)
def test_streams_share_an_epoch_equally(order, epoch):
    counts = [order.stream_samples(stream, epoch) for stream in range(order.num_streams)]
    assert sum(counts) == order.samples and max(counts) - min(counts) <= 1


def test_the_samples_of_all_shards_of_a_block_are_mixed():
    order = ShuffledOrder([50] * 4, seed=0, shuffle_block_shards=4, max_streams=1)
    (slots,) = [order.block(0, 0, number).slot for number in range(order.num_blocks(0, 0))]
    changes = np.count_nonzero(np.diff(slots))
    assert changes == pytest.approx(199 * 3 / 4, abs=25)  # 4 standard deviations of 199 throws of one in four


@for_all(orders, st.integers(0, 10**9), st.integers(0, 60))
def test_a_stream_begun_at_any_place_goes_on_as_if_it_had_not_stopped(order, late, skipped):
    stream = late % order.num_streams
    place = late + skipped

    def read(first):
        samples = ((block.epoch, *sample) for block in order.blocks(stream, first) for sample in rows_of(block))
        return list(itertools.islice(samples, place + 40 - first))

    def rows_of(block):
        return zip(block.index.tolist(), block.shards[block.slot].tolist(), block.row.tolist(), strict=True)

    without_stop = read(late)[skipped:]
    assert read(place) == without_stop
    for number, (expected_epoch, expected_index, *_) in enumerate(without_stop):
        epoch, block, offset = order.locate(stream, place + number)
        assert (epoch, order.block(stream, epoch, block).index[offset]) == (expected_epoch, expected_index)


@for_all(orders, st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 5))
def test_a_batch_holds_its_positions_of_the_sequence_arranged_by_stream(order, batch_size, start_step, steps):
    begin = start_step * batch_size
    expected = np.array(sequence(order, begin, begin + steps * batch_size)).reshape(steps, batch_size)
    by_stream = np.argsort(
        (begin + np.arange(steps * batch_size)).reshape(steps, -1) % order.num_streams, kind="stable"
    )
    batches = global_batches(order, start_step, steps, batch_size, num_hosts=1)
    np.testing.assert_array_equal(batches, np.take_along_axis(expected, by_stream, axis=1))


def test_a_batch_spans_two_epochs():
    order = ShuffledOrder(SHARD_SAMPLES, seed=1)  # 30 samples, 8 streams
    (batch,) = global_batches(order, 3, 1, 8, num_hosts=1)  # positions 24 .. 31, one of each stream
    assert batch == [*order.indices(0)[24:], *order.indices(1)[:2]]
    assert [epoch for _, epoch in sequence_with_epochs(order, 24, 32)] == [0] * 6 + [1] * 2


def test_a_batch_may_be_larger_than_an_epoch():
    order = ShuffledOrder([2, 1], seed=1)
    (batch,) = global_batches(order, 0, 1, 7, num_hosts=1)
    assert sorted(batch[:]) == sorted([*order.indices(0), *order.indices(1), order.indices(2)[0]])


@for_all(orders, st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6), st.integers(1, 4))
def test_the_number_of_hosts_does_not_change_the_batches(order, num_hosts, host_batch_size, start_step, steps):
    batch_size = num_hosts * host_batch_size
    batches = global_batches(order, start_step, steps, batch_size, num_hosts)
    assert batches == global_batches(order, start_step, steps, batch_size, num_hosts=1)
    for host in range(num_hosts):
        counts = [order.rows(start_step + step, batch_size, host, num_hosts)[1] for step in range(steps)]
        assert [count.sum() for count in counts] == [host_batch_size] * steps


@for_all(
    orders,
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 50),
    st.integers(0, 6),
    max_examples=25,
)
def test_resuming_on_other_hosts_equals_no_stop(order, num_hosts, later_hosts, multiple, start_step, steps):
    batch_size = math.lcm(num_hosts, later_hosts) * multiple
    without_stop = global_batches(order, start_step, steps + 2, batch_size, num_hosts)
    assert global_batches(order, start_step + steps, 2, batch_size, later_hosts) == without_stop[steps:]


@for_all(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_hosts_read_streams_of_their_own_where_the_numbers_divide(num_hosts, streams, shards, samples, data):
    num_streams = num_hosts * streams
    split = data.draw(st.lists(st.integers(1, 9), min_size=num_streams, max_size=num_streams + 9))
    order = ShuffledOrder(split, 0, shuffle_block_shards=num_streams * shards, max_streams=num_streams)
    for step in data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=5)):
        for host in range(num_hosts):
            count = order.rows(step, num_streams * samples, host, num_hosts)[1]
            own = np.arange(num_streams) // streams == host
            np.testing.assert_array_equal(count, np.where(own, samples, 0))


@for_all(orders, st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6))
def test_hosts_share_a_stream_only_where_their_slices_meet(order, num_hosts, host_batch_size, step):
    counts = [order.rows(step, num_hosts * host_batch_size, host, num_hosts)[1] for host in range(num_hosts)]
    users = np.count_nonzero(counts, axis=0)  # hosts of each stream
    assert np.sum(np.maximum(users - 1, 0)) <= num_hosts - 1  # each border of slices cuts at most one stream


@pytest.mark.parametrize("way", [{}, {"shuffle_block_shards": 64, "max_streams": 32}])
def test_a_late_block_of_a_large_split_needs_no_earlier_one(way, monkeypatch):
    order = ShuffledOrder(LARGE, seed=0, **way)
    permuted = []

    def counted(count, **name):
        permuted.append(count)
        return permutation(count, **name)

    monkeypatch.setattr(pipeline.order, "permutation", counted)
    place = 10**10 // order.num_streams
    epoch, number, offset = order.locate(0, place)
    block = order.block(0, epoch, number)
    assert epoch == 10**10 // order.samples and 0 <= offset < len(block.index)
    assert permuted == [len(LARGE), len(block.index)]  # the epoch's shards, and the block's samples
    assert len(block.index) <= 900 * order.shards_per_block


@for_all(splits, st.integers(1, 8), st.integers(1, 30))
def test_evaluation_takes_every_sample_once_on_any_number_of_hosts(split, num_hosts, host_batch_size):
    order = ManifestOrder(split)
    blocks = [list(order.blocks(host, num_hosts)) for host in range(num_hosts)]
    counts = [sum(len(block.index) for block in of_host) for of_host in blocks]
    index = [block.index for of_host in blocks for block in of_host]
    np.testing.assert_array_equal(np.concatenate(index), np.arange(sum(split)))
    assert max(counts) - min(counts) <= 1
    assert counts == [end - begin for begin, end in (order.stretch(host, num_hosts) for host in range(num_hosts))]
    # The fullest host needs every batch, so that as many serve all hosts and none is for nothing.
    assert order.num_batches(host_batch_size, num_hosts) == math.ceil(max(counts) / host_batch_size)


@for_all(splits, st.integers(1, 8))
def test_evaluation_takes_stretches_of_single_shards(split, num_hosts):
    order = ManifestOrder(split)
    first_of_shard = np.cumsum(split) - split
    for block in itertools.chain.from_iterable(order.blocks(host, num_hosts) for host in range(num_hosts)):
        (shard,) = block.shards
        assert block.epoch == 0 and len(block.slot) == len(block.row) and not block.slot.any()
        np.testing.assert_array_equal(block.index, first_of_shard[shard] + block.row)
        assert np.all((block.row >= 0) & (block.row < split[shard]))


@pytest.mark.parametrize("order", [ManifestOrder, lambda samples: ShuffledOrder(samples, seed=0)])
def test_an_empty_split_is_refused(order):
    with pytest.raises(ValueError, match="holds no samples"):
        order([0, 0])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"seed": -1}, "`seed` must be .* from 0 to .* Received: -1"),
        ({"seed": 2**63}, "`seed` must be .* Received: 9223372036854775808"),
        ({"seed": 0, "shuffle_block_shards": 0}, "`shuffle_block_shards` must be at least 1. Received: 0"),
        ({"seed": 0, "max_streams": 0}, "`max_streams` must be from 1 to 65534. Received: 0"),
        ({"seed": 0, "max_streams": 65535}, "`max_streams` must be from 1 to 65534. Received: 65535"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ShuffledOrder([1], **arguments)


def test_reading_state_counts_batches_through_epochs_and_back():
    state = ReadingState.from_step(10, batch_size=7, samples=30, seed=4)
    assert state == ReadingState(seed=4, epoch=2, position=10)  # 10 * 7 = 2 * 30 + 10
    assert state.step(batch_size=7, samples=30) == 10
    assert ReadingState.from_dict(state.to_dict()) == state


@for_all(st.integers(0, 10**9), st.integers(1, 10**5), st.integers(1, 10**9), seeds)
def test_reading_state_gives_back_any_step(step, batch_size, samples, seed):
    state = ReadingState.from_step(step, batch_size=batch_size, samples=samples, seed=seed)
    assert 0 <= state.position < samples and state.seed == seed
    assert state.step(batch_size=batch_size, samples=samples) == step


def test_reading_state_refuses_another_batch_size():
    with pytest.raises(ValueError, match="70 samples into the data.* batches of 8"):
        ReadingState(seed=0, epoch=2, position=10).step(batch_size=8, samples=30)


@pytest.mark.parametrize(
    "state", [{"seed": 0, "epoch": 0}, {"seed": 0, "epoch": 0, "position": -1}, {"seed": 0, "epochs": 0}]
)
def test_reading_state_refuses_a_damaged_dict(state):
    with pytest.raises(ValueError, match="seed, epoch, position.*Received"):
        ReadingState.from_dict(state)
