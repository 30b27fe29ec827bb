"""Proves that an exported folder encodes as training does, because nothing else would reveal an error of the export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedlab.errors import DataError
from embedlab.gradcache.chunking import Chunk
from embedlab.model.backbone import pads_with_a_word
from embedlab.model.encoder import Encoder

# Unicode keeps U+FDD0 to U+FDEF out of all text that programs exchange, so no text contains this token by chance.
_PADDING = "\ufdd0padding\ufdd0"
_TOLERANCE = 1e-5  # maximum difference of an element of a unit vector, for float32 and float64 weights
_TOLERANCE_OF_HALVES = 5e-2  # for other weights: their 8 or 11 bits of precision round an update that is merged
_TEXTS = (
    "a",
    "two words",
    "What is the repair of a river? 12 + 30 = 42; see https://example.org/a_b#c.",
    " leading, trailing and  double spaces\t\n",
    "Größe, naïve, 東京, привет, 🙂",
    "def f(x):\n    return [x ** 2, {'a': None}]",
)


class ExportProof:
    """Tokens and embeddings of some texts as training computes them, for comparison with an exported folder.

    The texts are plain texts, a text that is longer than the maximum, a text with each prompt, and a text with the name
    of each special token. The constructor encodes the texts, because merging a method's update may change the model in
    place.

    Args:
        encoder: Trained model in evaluation mode.
        tokenizer: Tokenizer of training.
        prompts: Prompts of training by name.
        max_length: Maximum length of a text in tokens. Longer texts are cut.
    """

    def __init__(
        self, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, prompts: Mapping[str, str], *, max_length: int
    ) -> None:
        special = [*map(str, tokenizer.all_special_tokens), *tokenizer.convert_ids_to_tokens([0])]
        texts = [*_TEXTS, "many words " * max_length + "end", *(f"{prompt}two words" for prompt in prompts.values())]
        texts += [f"one{token}two {token} three" for token in dict.fromkeys(special)]
        weights = next(encoder.parameters())
        self._tolerance = _TOLERANCE if weights.dtype in (torch.float32, torch.float64) else _TOLERANCE_OF_HALVES
        self._expected: dict[str, tuple[list[int], np.ndarray]] = {}
        for text in dict.fromkeys(texts):
            ids: list[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            if not ids:
                continue
            ids_BL = torch.tensor([ids], device=weights.device)
            with torch.no_grad():
                embedding_BD = encoder(Chunk(ids_BL, torch.ones_like(ids_BL), torch.zeros(1, dtype=torch.int64)))
            self._expected[text] = ids, embedding_BD[0].float().cpu().numpy()

    def check(self, folder: Path, *, trust_remote_code: bool) -> None:
        """Load an exported folder in Sentence-Transformers, and compare its tokens and embeddings with training.

        Args:
            folder: Exported folder.
            trust_remote_code: Whether to run Python code from the folder.

        Raises:
            DataError: If the folder does not open, or tokens or embeddings differ by more than rounding.
        """
        from sentence_transformers import SentenceTransformer  # a slow import that nothing else needs

        end = "The folder was not kept. Report this error with the names of the backbone and the method."
        wrong = "The exported folder does not encode as training does: for the text"
        try:
            opened = SentenceTransformer(str(folder), device="cpu", trust_remote_code=trust_remote_code)
            # Older releases strip texts before they encode them.
            embeddings = {text: opened.encode(text) for text in self._expected if text == text.strip()}
            tokens = {
                text: opened.tokenizer(text, truncation=True, max_length=opened.max_seq_length)["input_ids"]
                for text in self._expected
            }
        except Exception as error:  # whatever the library raises, the folder cannot be used
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(
                f"The exported folder does not open in Sentence-Transformers ({reason:.300}). {end}"
            ) from error
        for text, (ids, embedding) in self._expected.items():
            shown = repr(text if len(text) <= 80 else f"{text[:80]}…")
            if tokens[text] != ids:
                raise DataError(f"{wrong} {shown}, its tokens are {tokens[text]!s:.200} instead of {ids!s:.200}. {end}")
            if text in embeddings:
                difference = float(np.abs(embeddings[text] - embedding).max())
                if not difference <= self._tolerance:
                    raise DataError(
                        f"{wrong} {shown}, an element of the embedding differs by {difference:.1e}, but rounding "
                        f"explains at most {self._tolerance:g}. {end}"
                    )


def with_padding_of_its_own(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a padding token that cannot occur in a text.

    A saved tokenizer treats its padding token as a special token. If the padding token were a word, the saved tokenizer
    would cut the word out of texts. The new padding token takes a row of the embedding matrix that no other token uses,
    or else a new row of zeros.

    Args:
        tokenizer: Tokenizer of training, which is changed in place if its padding token is a word.
        model: Merged model, whose embedding matrix gets the new row.
    """
    if not pads_with_a_word(tokenizer):
        return tokenizer
    tokenizer.add_special_tokens({"pad_token": _PADDING})
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    if len(tokenizer) > embedding.num_embeddings:
        embedding = model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            embedding.weight[tokenizer.pad_token_id] = 0
    return tokenizer
