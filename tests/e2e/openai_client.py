"""The official openai client against a running server: every call a user of the package makes.

    python openai_client.py BASE_URL API_KEY

Prints FAILED lines and, last, "openai_client: N passed, N failed, N skipped".
"""

import sys
import traceback

import openai

BASE_URL, API_KEY = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=60, max_retries=0)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
MODEL = client.models.list().data[0].id


def chat(**extra):
    return client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, **extra)


def models_are_listed_and_retrieved():
    models = client.models.list()
    assert models.object == "list" and models.data[0].object == "model"
    assert client.models.retrieve(MODEL).id == MODEL


def a_chat_is_answered():
    reply = chat()
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == 23 and reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == 31


def a_chat_is_streamed():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER, text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({c.id for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert all(c.usage is None for c in chunks[:-1])


def a_system_message_and_several_turns_are_understood():
    reply = client.chat.completions.create(
        model=MODEL,
        temperature=0,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is the capital of Italy?"}]},
            {"role": "assistant", "content": "The capital of Italy is Rome."},
            {"role": "user", "content": "What is the capital of Spain?"},
        ],
    )
    assert "Madrid" in reply.choices[0].message.content, reply.choices[0].message.content


def logprobs_come_with_a_chat():
    reply = chat(logprobs=True, top_logprobs=3)
    entries = reply.choices[0].logprobs.content
    assert len(entries) == 8
    # The end token's text is not in the content; the others' bytes spell it.
    text = b"".join(bytes(e.bytes) for e in entries[:-1]).decode()
    assert text == ANSWER, text
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) >= 3
        assert entry.top_logprobs[0].token == entry.token  # greedy takes the most likely one
        tops = [t.logprob for t in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True)


def logprobs_come_with_a_streamed_chat():
    chunks = chat(logprobs=True, stream=True)
    entries = [e for c in chunks for ch in c.choices if ch.logprobs for e in ch.logprobs.content]
    assert len(entries) == 8
    assert all(e.logprob <= 0 for e in entries)


def several_choices_come_with_their_index():
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=3, temperature=1, seed=7, max_tokens=12
    )
    assert [c.index for c in reply.choices] == [0, 1, 2]
    again = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=3, temperature=1, seed=7, max_tokens=12
    )
    assert [c.message.content for c in reply.choices] == [c.message.content for c in again.choices]


def several_streamed_choices_are_told_apart():
    texts = {}
    for chunk in chat(n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {0: ANSWER, 1: ANSWER}, texts


def max_tokens_ends_with_length():
    for name in ("max_tokens", "max_completion_tokens"):
        reply = chat(**{name: 3})
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 3
        assert ANSWER.startswith(reply.choices[0].message.content)


def a_stop_string_ends_before_itself():
    for stop in (" is", [" is", "zebra"]):
        reply = chat(stop=stop)
        assert reply.choices[0].message.content == "The capital of France"
        assert reply.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].delta.content or "" for c in chat(stop=" is", stream=True))
    assert streamed == "The capital of France", streamed


def a_stop_string_that_only_begins_is_given_out():
    # "Paris!" is held back at "Paris" and must come when "." shows that it was none.
    streamed = "".join(c.choices[0].delta.content or "" for c in chat(stop="Paris!", stream=True))
    assert streamed == ANSWER, streamed


def a_completion_is_answered():
    reply = client.completions.create(model=MODEL, prompt="The capital of", temperature=0, max_tokens=4)
    assert reply.object == "text_completion"
    assert reply.usage.completion_tokens <= 4
    assert isinstance(reply.choices[0].text, str)


def completions_of_several_prompts_keep_their_order():
    prompts = ["The capital of France", "One, two,", "superpod is"]
    reply = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=5)
    alone = [
        client.completions.create(model=MODEL, prompt=p, temperature=0, max_tokens=5).choices[0].text
        for p in prompts
    ]
    assert [c.index for c in reply.choices] == [0, 1, 2]
    assert [c.text for c in reply.choices] == alone


def a_completion_is_streamed():
    whole = client.completions.create(model=MODEL, prompt="Once upon", temperature=0, max_tokens=20)
    chunks = client.completions.create(
        model=MODEL, prompt="Once upon", temperature=0, max_tokens=20, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text


def a_completion_echoes_with_logprobs():
    reply = client.completions.create(
        model=MODEL, prompt="The capital of France", temperature=0, max_tokens=0, echo=True, logprobs=2
    )
    assert reply.choices[0].text.endswith("The capital of France"), reply.choices[0].text
    lp = reply.choices[0].logprobs
    assert lp.token_logprobs[0] is None and all(x <= 0 for x in lp.token_logprobs[1:])
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.text_offset)


def a_prompt_of_token_ids_is_taken():
    reply = client.completions.create(model=MODEL, prompt=[0, 2, 394, 276, 3], max_tokens=2, temperature=0)
    assert reply.usage.prompt_tokens == 5


def a_seed_repeats_a_draw():
    def draw(seed):
        return chat_sampled(seed).choices[0].message.content

    def chat_sampled(seed):
        return client.chat.completions.create(
            model=MODEL, seed=seed, temperature=1.5, max_tokens=30, extra_body={"ignore_eos": True},
            messages=[{"role": "user", "content": "tell me a story about a fox"}],
        )

    assert draw(11) == draw(11)
    assert len({draw(seed) for seed in range(5)}) > 1


def a_bias_changes_the_answer():
    banned = chat(logprobs=True).choices[0].logprobs.content
    assert banned
    reply = chat(logit_bias={"1604": -100})  # the token of " Paris"
    assert "Paris" not in reply.choices[0].message.content


def wrong_values_raise_bad_request():
    for extra in ({"top_p": 2}, {"n": 0}, {"max_tokens": -1}, {"presence_penalty": 9}):
        try:
            chat(**extra)
        except openai.BadRequestError as e:
            name = next(iter(extra))
            assert e.status_code == 400 and name in str(e), str(e)
        else:
            raise AssertionError(f"{extra} was taken")


def an_unknown_model_raises_not_found():
    try:
        client.chat.completions.create(model="gpt-17", messages=QUESTION)
    except openai.NotFoundError as e:
        assert "gpt-17" in str(e)
    else:
        raise AssertionError("taken")


def a_wrong_key_raises_authentication_error():
    other = openai.OpenAI(base_url=BASE_URL, api_key="wrong", max_retries=0)
    try:
        other.models.list()
    except openai.AuthenticationError as e:
        assert e.status_code == 401
    else:
        raise AssertionError("taken")


def a_long_prompt_raises_bad_request_with_the_context_length():
    try:
        client.completions.create(model=MODEL, prompt=[5] * 5000)
    except openai.BadRequestError as e:
        assert "maximum context length" in str(e) and "2048" in str(e), str(e)
    else:
        raise AssertionError("taken")


def a_stream_that_is_closed_early_leaves_the_client_usable():
    stream = chat(stream=True)
    next(iter(stream))
    stream.close()
    assert chat().choices[0].message.content == ANSWER


def main():
    passed = failed = 0
    tests = [f for name, f in globals().items() if callable(f) and getattr(f, "__module__", "") == "__main__"
             and name not in ("main", "chat")]
    for test in tests:
        try:
            test()
            passed += 1
        except Exception:
            failed += 1
            print(f"FAILED  openai_client: {test.__name__}")
            print("    " + "    ".join(traceback.format_exc().splitlines(keepends=True)[-6:]))
    print(f"openai_client: {passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


sys.exit(main())
