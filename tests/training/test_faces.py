"""Faces: every attribute known, every combination once."""

from training.captions import looks
from training.faces import COUNT, FACES, LOOKS, is_face_held_out, options


def test_no_two_faces_look_the_same():
    assert len({tuple(face.values()) for face in FACES}) == COUNT


def test_every_word_of_every_attribute_is_somebodys():
    for attribute, words in LOOKS.items():
        assert {face[attribute] for face in FACES} == set(words)


def test_about_a_tenth_is_held_out():
    share = sum(is_face_held_out(k) for k in range(COUNT)) / COUNT
    assert 0.05 < share < 0.15


def test_a_face_is_told_by_what_is_said_of_it():
    face = {"hair": "red", "length": "long", "skin": "tan", "glasses": "none", "hat": "blue",
            "clothes": "orange"}  # fmt: skip
    assert looks(face, ("hair",)) == " with red hair"
    assert looks(face, tuple(LOOKS)) == (
        " with long red hair and tan skin, wearing an orange shirt and a blue hat"
    )
    assert looks(face, ("glasses",)) == ""


def test_every_part_that_is_drawn_is_named():
    for seed, face in enumerate(FACES[:50]):
        told = options(seed, face)
        assert told == options(seed, face)
        assert told["hatProbability"] == (0 if face["hat"] == "none" else 100)
        assert bool(told["glasses"]) == (face["glasses"] != "none")
