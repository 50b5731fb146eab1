"""Embeddings: what they are, and that keeping them changes nothing."""

from __future__ import annotations

import pytest
import torch

from speechft.data import Manifest, embedded_corpus, load_audio
from speechft.errors import ArgumentError
from speechft.evaluation.conditions import Condition
from speechft.evaluation.embeddings import Embeddings, data_key, model_key
from speechft.evaluation.log_mel import LogMel
from speechft.models import tiny


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Manifest(list(embedded_corpus())[:5])


@pytest.mark.parametrize("batch_seconds", [1.0, 100.0])
def test_frames_are_those_of_each_utterance_alone(manifest, batch_seconds):
    encoder = tiny()
    frames = Embeddings(encoder, batch_seconds=batch_seconds, progress=False).frames(manifest)
    assert frames.layers == (0, 1, 2, 3)
    for row, values in zip(manifest, frames.values, strict=True):
        with torch.no_grad():
            alone = encoder(torch.from_numpy(load_audio(row))[None])
        expected = torch.stack([*alone.hidden_states[:-1], alone.last_hidden_state], 2)[0]
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


def test_pooled_is_the_mean_of_valid_frames(manifest):
    embeddings = Embeddings(tiny(), progress=False)
    frames = embeddings.frames(manifest)
    expected = torch.stack([values.mean(0) for values in frames.values])
    torch.testing.assert_close(embeddings.pooled(manifest), expected)


def test_some_layers_are_the_same_as_of_all(manifest):
    embeddings = Embeddings(tiny(), progress=False)
    some, every = embeddings.frames(manifest, layers=[3, 1]), embeddings.frames(manifest)
    assert torch.equal(some.layer(1)[2], every.layer(1)[2])
    assert torch.equal(some.layer(3)[0], every.layer(3)[0])
    with pytest.raises(ArgumentError, match="0 to 3"):
        embeddings.frames(manifest, layers=[4])


def test_times_follow_the_original_when_it_is_played_faster(manifest):
    """Frames of the same sound have the same time on the original's clock."""
    embeddings = Embeddings(tiny(), progress=False)
    plain, fast = embeddings.frames(manifest), embeddings.frames(manifest, "speed 1.25")
    assert plain.times(0)[:2].tolist() == pytest.approx([0.0125, 0.0325])
    assert fast.times(0)[:2].tolist() == pytest.approx([0.0125 * 1.25, 0.0325 * 1.25])
    for row in range(len(manifest)):
        ends = plain.times(row)[-1], fast.times(row)[-1]
        assert abs(float(ends[0] - ends[1])) < 0.03


def test_a_pitch_shift_keeps_time(manifest):
    shifted = Embeddings(tiny(), progress=False).frames(manifest, "pitch +3")
    plain = Embeddings(tiny(), progress=False).frames(manifest)
    assert torch.equal(shifted.times(1), plain.times(1))
    assert not torch.allclose(shifted.values[1], plain.values[1])


@pytest.mark.parametrize("name", ["louder 3", "speed", "speed x", "pitch nan", "speed 40"])
def test_unknown_conditions_are_errors(name):
    with pytest.raises(ArgumentError):
        Condition.parse(name)


def test_the_cache_gives_the_same_bits_and_no_model_is_run(manifest, tmp_path):
    encoder = tiny()
    first = Embeddings(encoder, cache=tmp_path, progress=False).frames(manifest)
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    second = Embeddings(encoder, cache=tmp_path, progress=False).frames(manifest)
    assert len(calls) == 1  # a second of sound, to know the model
    assert all(map(torch.equal, first.values, second.values))


def test_a_stopped_extraction_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("speechft.evaluation.embeddings._SHARD_SECONDS", 5)
    manifest = Manifest(list(embedded_corpus())[:6])
    encoder, seen = tiny(), []

    def stop(module, args, output):
        seen.append(len(args[0]))
        if len(seen) == 1 + 3:
            raise KeyboardInterrupt

    hook = encoder.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        Embeddings(encoder, cache=tmp_path, progress=False, batch_seconds=1).pooled(manifest)
    hook.remove()
    done = len(list(tmp_path.rglob("*.safetensors")))
    assert done == 2
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    resumed = Embeddings(encoder, cache=tmp_path, progress=False, batch_seconds=1).pooled(manifest)
    assert len(calls) == 1 + 6 - done
    whole = Embeddings(encoder, progress=False, batch_seconds=1).pooled(manifest)
    assert torch.equal(resumed, whole)


def test_a_damaged_shard_is_computed_again(manifest, tmp_path):
    encoder = tiny()
    first = Embeddings(encoder, cache=tmp_path, progress=False).pooled(manifest)
    (shard,) = tmp_path.rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    assert torch.equal(Embeddings(encoder, cache=tmp_path, progress=False).pooled(manifest), first)


def test_another_model_condition_or_file_is_another_entry(manifest, tmp_path):
    encoder = tiny()
    embeddings = Embeddings(encoder, cache=tmp_path, progress=False)
    embeddings.pooled(manifest)
    embeddings.pooled(manifest, "speed 1.1")
    changed = tiny()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    Embeddings(changed, cache=tmp_path, progress=False).pooled(manifest)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert model_key(encoder) == model_key(tiny())
    assert model_key(encoder) != model_key(changed)
    assert model_key(encoder) != model_key(tiny(do_normalize=True))


def test_the_key_of_data_knows_a_changed_file(tmp_path):
    import shutil

    from speechft.data import Utterance

    source = embedded_corpus()[0].audio
    copy = tmp_path / "a.flac"
    shutil.copyfile(source, copy)
    key = data_key(Manifest([Utterance("a", copy)]))
    assert key == data_key(Manifest([Utterance("a", copy)]))
    assert key != data_key(Manifest([Utterance("a", copy, end=1.0)]))
    shutil.copyfile(embedded_corpus()[1].audio, copy)
    assert key != data_key(Manifest([Utterance("a", copy)]))


def test_log_mel_ignores_padding_and_batch_mates(manifest):
    log_mel = LogMel()
    waveforms = [torch.from_numpy(load_audio(row)) for row in manifest]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    together = log_mel(padded, lengths)
    for row, waveform in enumerate(waveforms):
        alone = log_mel(waveform[None])
        n = int(together.lengths[row])
        assert n == int(alone.lengths[0]) == alone.last_hidden_state.shape[1]
        torch.testing.assert_close(together.last_hidden_state[row, :n], alone.last_hidden_state[0])
        assert not together.last_hidden_state[row, n:].any()


def test_log_mel_of_a_tone_peaks_at_its_band():
    time = torch.arange(16_000) / 16_000
    for hertz in (500, 1000, 3000):
        tone = torch.sin(2 * torch.pi * hertz * time)[None]
        frame = LogMel()(tone).last_hidden_state[0, 10, :40]
        mel = 2595 * torch.log10(1 + torch.tensor(hertz / 700))
        low = 2595 * torch.log10(1 + torch.tensor(20 / 700))
        high = 2595 * torch.log10(1 + torch.tensor(8000 / 700))
        band = (mel - low) / (high - low) * 41 - 1
        assert abs(float(frame.argmax()) - float(band)) <= 1


def test_a_damaged_number_in_a_shard_is_noticed(manifest, tmp_path):
    encoder = tiny()
    first = Embeddings(encoder, cache=tmp_path, progress=False).pooled(manifest)
    (shard,) = tmp_path.rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-20] ^= 0x40
    shard.write_bytes(content)
    assert torch.equal(Embeddings(encoder, cache=tmp_path, progress=False).pooled(manifest), first)


def test_what_weights_do_not_say_is_in_the_key():
    """An adapter's scale, say, which is an attribute and not a tensor."""

    class Scaled(LogMel):
        scale = 1.0

        def forward(self, waveforms, lengths=None, **_):
            output = super().forward(waveforms, lengths)
            states = tuple(self.scale * state for state in output.hidden_states)
            return output._replace(hidden_states=states, last_hidden_state=states[-1])

    one, two = Scaled(), Scaled()
    assert model_key(one) == model_key(two)
    two.scale = 0.5
    assert model_key(one) != model_key(two)


def test_a_clip_that_a_condition_makes_too_short_is_named(tmp_path):
    import soundfile

    from speechft.data import Utterance
    from speechft.errors import AudioError

    path = tmp_path / "short.wav"
    soundfile.write(path, torch.randn(600).numpy() * 0.1, 16_000)
    clip = Manifest([Utterance("tiny", path)])
    embeddings = Embeddings(LogMel(), progress=False)
    assert embeddings.pooled(clip).shape == (1, 1, 80)
    with pytest.raises(AudioError, match=r"short\.wav \(utterance 'tiny'\): has 480 samples"):
        embeddings.pooled(clip, "speed 1.25")


def test_a_model_that_gives_nan_is_named_with_the_utterance(manifest):
    from speechft.errors import NonFiniteError

    class Broken(LogMel):
        def forward(self, waveforms, lengths=None, **_):
            output = super().forward(waveforms, lengths)
            state = output.last_hidden_state.clone()
            state[-1, 0, 0] = float("nan")
            return output._replace(hidden_states=(state,), last_hidden_state=state)

    with pytest.raises(NonFiniteError, match="gives NaN or infinity for utterance 'festvox-ru/"):
        Embeddings(Broken(), progress=False).pooled(manifest)


def test_a_file_that_is_gone_is_an_error_that_names_it(tmp_path):
    from speechft.data import Utterance
    from speechft.errors import AudioError

    with pytest.raises(AudioError, match="No such file"):
        data_key(Manifest([Utterance("a", tmp_path / "gone.wav")]))


def test_frames_that_memory_cannot_hold_are_refused_before_any_is_made(manifest, monkeypatch):
    encoder = tiny()
    embeddings = Embeddings(encoder, progress=False)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 50}.__getitem__)
    encoder.register_forward_hook(lambda *_: pytest.fail("encoded"))
    with pytest.raises(ArgumentError, match="choose fewer layers or less speech"):
        embeddings.frames(manifest)
