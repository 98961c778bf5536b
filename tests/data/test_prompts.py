import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from h2c_hf.prompts import (
    LETTERS,
    answer_ids,
    choice_answer,
    choice_prompt,
    hint_prompt,
    letter_ids,
    open_answer,
    open_prompt,
    user_turn,
)


QUESTION = {
    "question": "Which is the capital of Kenya?",
    "choices": ["Lima", "Nairobi", "Oslo", "Quito"],
    "answer": 1,
    "subject": "capital",
}


@pytest.fixture(params=["chatml", "headers"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


def test_choice_prompt_letters_every_choice():
    assert choice_prompt(QUESTION) == (
        "Which is the capital of Kenya?\nA. Lima\nB. Nairobi\nC. Oslo\nD. Quito\nAnswer with one letter."
    )
    assert choice_answer(QUESTION) == "B"


def test_open_prompt_shows_no_choice():
    assert open_prompt(QUESTION) == "Which is the capital of Kenya?"
    assert open_answer(QUESTION) == "Nairobi"


def test_hints_follow_the_question():
    prompt = choice_prompt(QUESTION)
    assert choice_prompt(QUESTION, "It is in Kenya.") == prompt.replace(
        "\nAnswer with", "\nHint: It is in Kenya.\nAnswer with"
    )
    assert open_prompt(QUESTION, "It is in Kenya.") == f"{open_prompt(QUESTION)}\nHint: It is in Kenya."


def test_hint_prompt_shows_the_whole_question():
    assert hint_prompt(QUESTION).startswith(choice_prompt(QUESTION).removesuffix("Answer with one letter."))
    assert hint_prompt(QUESTION) != choice_prompt(QUESTION)


@pytest.mark.parametrize("answer", [4, -1, "B"])
@pytest.mark.parametrize("answer_of", [choice_answer, open_answer])
def test_refuses_an_answer_that_is_no_choice(answer, answer_of):
    with pytest.raises(
        ValueError, match=rf"is {answer!r}; expected the index of one of its 4 choices, 0 to 3"
    ):
        answer_of({**QUESTION, "answer": answer})


@pytest.mark.parametrize("count", [0, 11])
def test_refuses_choices_without_letters(count):
    """An eleventh choice would be left out of the prompt without a word."""
    question = {**QUESTION, "choices": [str(i) for i in range(count)], "answer": 0}
    with pytest.raises(ValueError, match=f"has {count} choices; expected 1 to 10"):
        choice_prompt(question)


@pytest.mark.parametrize("answer", ["B", "Nairobi", "two words", "In two\n\nparagraphs."])
def test_answer_ids_are_what_follows_the_generation_prompt(tokenizer, answer):
    conversation = user_turn(choice_prompt(QUESTION))
    ids = answer_ids(tokenizer, conversation, answer)
    assert tokenizer.decode(ids) == f"{answer}<end>"
    assert ids.count(tokenizer.eos_token_id) == 1

    prompt = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [*conversation, {"role": "assistant", "content": answer}], tokenize=False
    )
    joined = tokenizer(prompt, add_special_tokens=False)["input_ids"] + ids
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(joined)] == joined


def test_answer_ids_where_the_prompt_would_merge_with_the_answer(chatml_tokenizer):
    """Written together, the prompt's last line end and the answer's first are one token."""
    ids = answer_ids(chatml_tokenizer, user_turn("Write a poem."), "\nRoses are red")
    assert chatml_tokenizer.convert_ids_to_tokens(ids)[:2] == ["Ċ", "R"]
    assert chatml_tokenizer.decode(ids) == "\nRoses are red<end>"


def test_answer_ids_where_a_text_of_its_own_begins_with_a_space():
    """In the manner of SentencePiece: the answer encoded apart from its prompt would be "▁A"."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["▁", *"ABQ", "▁A"])}, [("▁", "A")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<user>", "<assistant>", "<end>"])
    template = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, eos_token="<end>")
    assert tokenizer.tokenize("A") == ["▁A"]
    assert tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, user_turn("Q"), "A")) == ["A", "<end>"]


def test_answer_ids_without_an_end_token(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    assert tokenizer.decode(answer_ids(tokenizer, user_turn("Q"), "answer")) == "answer\n"


def test_answer_ids_refuse_a_template_that_answers_elsewhere(make_tokenizer):
    template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}reply:{% endif %}"
    )
    with pytest.raises(
        ValueError,
        match=r"does not begin the assistant's turn with its generation prompt: "
        r"expected '.*reply:'.*got '.*yes<end>'",
    ):
        answer_ids(make_tokenizer(template), user_turn("Q"), "yes")


def test_answer_ids_refuse_an_answer_without_tokens(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="The answer '' has no tokens"):
        answer_ids(tokenizer, user_turn("Q"), "")


@pytest.mark.parametrize("count", [2, 4, 10])
def test_letter_ids_are_the_letters(tokenizer, count):
    ids = letter_ids(tokenizer, user_turn(choice_prompt(QUESTION)), count)
    assert [tokenizer.decode([token]) for token in ids] == list(LETTERS[:count])


def test_letter_ids_follow_the_template(make_tokenizer):
    """Where the template writes a space before the answer, the letters' tokens have one too."""
    template = (
        "{% for m in messages %}{{ '<start>' + m['role'] + '<head> ' + m['content'] + '<end>' }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}<start>assistant<head>{% endif %}"
    tokenizer = make_tokenizer(template, [("Ġ", letter) for letter in "ABCD"])
    assert tokenizer.convert_ids_to_tokens(letter_ids(tokenizer, user_turn("Q"))) == ["ĠA", "ĠB", "ĠC", "ĠD"]


def test_letter_ids_refuse_letters_of_two_tokens(make_tokenizer):
    template = (
        "{% for m in messages %}{{ '<start>' + m['role'] + '<head> ' + m['content'] + '<end>' }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}<start>assistant<head>{% endif %}"
    tokenizer = make_tokenizer(template, [("Ġ", "A")])  # " A" is a token; " B" is a space and "B"
    with pytest.raises(
        ValueError, match=r"A, B, C, D must be single, distinct tokens; 'B' begins with token \d+, ' '"
    ):
        letter_ids(tokenizer, user_turn("Q"))


@pytest.mark.parametrize("count", [0, 11])
def test_letter_ids_refuse_more_than_there_are(tokenizer, count):
    with pytest.raises(ValueError, match=f"Got {count} choices; expected 1 to 10"):
        letter_ids(tokenizer, user_turn("Q"), count)
