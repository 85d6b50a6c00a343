import numpy as np

from service.retrieval.tokenize import terms
from service.retrieval.vectors import LatentVectors

TEXTS = [
    "speculative decoding lets a drafter propose tokens",
    "the drafter proposes and the target model verifies",
    "logs carry the trace id of the request",
    "a request has a trace id and a span id",
    "日志里写入追踪编号",
    "每个请求都有一个追踪编号",
]


def learn(dimensions: int = 4) -> LatentVectors:
    return LatentVectors.learn([terms(text) for text in TEXTS], dimensions)


def test_a_text_is_closest_to_itself() -> None:
    """Embedding an indexed text again gives its own vector."""
    vectors = learn(len(TEXTS))

    for number, text in enumerate(TEXTS):
        similarities = vectors.similarities(terms(text))

        assert int(np.argmax(similarities)) == number
        assert similarities[number] > 0.999


def test_subjects_stay_apart() -> None:
    """Texts on one subject are closer than texts on another, in both languages."""
    vectors = learn()

    drafting = vectors.similarities(terms("who drafts the tokens"))
    tracing = vectors.similarities(terms("请求的编号"))

    assert min(drafting[:2]) > max(drafting[2:])
    assert min(tracing[4:]) > max(tracing[:2])


def test_the_decomposition_is_the_best_of_its_rank() -> None:
    """The randomised SVD keeps as much of the matrix as numpy's exact one."""
    from service.retrieval import vectors as module  # noqa: PLC0415  # its inner matrix

    counted = [module._bucket_counts(terms(text)) for text in TEXTS]
    idf = learn().idf
    rows = [module._weigh(counts, idf) for counts in counted]
    matrix = module._SparseRows.stack(rows)
    dense = np.zeros((len(rows), module.BUCKETS), dtype=np.float32)
    for row, (buckets, weights) in enumerate(rows):
        dense[row, buckets] = weights
    projection = module._right_singular_vectors(matrix, 3)
    exact = np.linalg.svd(dense, full_matrices=False)[1]

    kept = np.linalg.norm(dense @ projection)

    np.testing.assert_allclose(matrix.dot(projection), dense @ projection, atol=1e-5)
    np.testing.assert_allclose(
        matrix.transposed().dot(dense[:, :2]), dense.T @ dense[:, :2], atol=1e-5
    )
    assert kept == np.float32(kept)
    assert np.isclose(kept, np.linalg.norm(exact[:3]), rtol=1e-3)


def test_nothing_in_common_is_the_zero_vector() -> None:
    """A text without terms resembles nothing, and is no error."""
    assert not learn().similarities([]).any()


def test_learning_repeats() -> None:
    """The same texts give the same vectors."""
    np.testing.assert_array_equal(learn().passages, learn().passages)


def test_one_text_is_enough() -> None:
    """A library of one passage has a vector."""
    vectors = LatentVectors.learn([["alone"]])

    assert vectors.similarities(["alone"])[0] > 0.999


def test_texts_without_terms_are_learnt_too() -> None:
    """A passage of punctuation has no terms and breaks nothing."""
    vectors = LatentVectors.learn([[], ["word"], []])

    assert vectors.similarities(["word"]).tolist()[0] == 0
