"""What the answer of a completion is: a table of forms, the same rule for maths, benchmarks and other tasks."""

import json

import pytest

from lambda_grpo.tasks import Maths, Problem
from lambda_grpo.tasks.answers import final_answer, last_number, stated_answer
from lambda_grpo.tasks.benchmarks import Benchmark
from lambda_grpo.tasks.data_files import ProblemRows
from lambda_grpo.tasks.maths import gold_text

pytest.importorskip("math_verify")

ROWS = [{"prompt": "9*2?", "answer": "18"}]

# Gold answer, completion, whether it is right.
FORMS = [
    # Thinking is no answer.
    ("18", "<think>9*2=18</think><answer>17</answer>", 0),
    ("17", "<think>9*2=18</think><answer>17</answer>", 1),
    ("18", r"<think>\boxed{18}</think> I am not sure", 0),
    ("18", r"<think>\boxed{17}</think> 18", 1),
    ("18", r"\boxed{17}</think> It is 18.", 1),
    ("18", "<think>It must be 18", 0),
    ("18", "<think>It is 18</think>", 0),
    # Tags.
    ("18", "<answer>18</answer>", 1),
    ("18", "<answer>\n18\n</answer>", 1),
    ("18", "<answer>18 dollars</answer>", 1),
    ("18", "<answer>$18</answer>", 1),
    ("18", r"<answer>\$18.00</answer>", 1),
    ("18", "<answer>$18$</answer>", 1),
    ("18", r"<answer>\boxed{18}</answer>", 1),
    ("18", "<answer>She makes 18 dollars a day.</answer>", 1),
    ("18", "<answer>17</answer> or 18", 0),
    ("18", "<answer>17</answer> no, <answer>18</answer>", 1),
    ("18", "<answer>18", 0),
    ("18", "18</answer>", 1),
    (r"\frac{1}{2}", r"<answer>\frac{1}{2}</answer>", 1),
    ("x^2 + 1", "<answer>1 + x^2</answer>", 1),
    ("Friday", "<answer>Friday</answer>", 1),
    ("Friday", "<answer>Monday</answer>", 0),
    ("-3", "<answer>- 3</answer>", 1),
    # Boxes.
    ("18", r"\boxed{18", 0),
    ("18", r"\boxed{18} and again \boxed{1", 0),
    ("18", r"\boxed 18", 1),
    ("18", r"So $\fbox{18}$.", 1),
    ("204", r"or $\framebox{204}$ minutes in 3.4 hours", 1),
    ("18", r"\boxed{17}. No: \boxed{18}", 1),
    ("17", r"\boxed{17}. No: \boxed{18}", 0),
    ("18", r"The answer is 17, so \boxed{18}. I used 3 steps.", 1),
    ("73", r"\boxed{\textbf{(073)}}", 1),
    ("18", r"\boxed{\textbf{(B)}\ 18}", 1),
    ("18", r"\boxed{18.}", 1),
    ("18", r"\boxed{18 dollars}", 1),
    ("18", r"\boxed{18°}", 1),
    ("18", r"\boxed{\$18}", 1),
    ("2, 5", r"\boxed{5} and \boxed{2}", 1),
    ("5", r"\boxed{5} and \boxed{2}", 0),
    (r"50\%", r"$\boxed{50}\%$", 1),
    ("2", r"\boxed{2xy}", 0),
    ("2", r"\boxed{2 pi}", 0),
    ("18", r"\boxed{18 million}", 0),
    # GSM8K's line.
    ("18", "9 * 2 = $<<9*2=18>>18 every day.\n#### 18", 1),
    ("18", "#### 18\n\nQuestion: how much is 3 + 4?", 1),
    ("18", "#### $18", 1),
    ("1250", "#### 1,250", 1),
    ("18", "17\n#### Step 2\nIt is 18", 1),
    # Prose: what follows "the answer is", else the last number.
    ("13", " 12 + 7 = 19, 19 - 6 = 13. The answer is 13.", 1),
    ("5", "The answer is 5 because there are 3 boxes.", 1),
    ("18", r"She makes \$18 every day.", 1),
    ("18", "She makes $18 every day.", 1),
    ("18", "It costs US$18.", 1),
    ("18", "It is **18**", 1),
    ("18", "**Answer:** 18 (eighteen)", 1),
    ("18", "Total:18", 1),
    ("18", "It is `18`.", 1),
    ("18", "20 - 2 = 18", 1),
    ("18", "18 or rather 19", 0),
    ("-3", "- 3", 1),
    ("3", "- 3", 0),
    ("-3", "x = - 3", 1),
    ("-3", "It is −3", 1),
    ("3", "They are\n- 2\n- 3", 1),
    ("18", "18 m/s", 1),
    ("18", "eighteen", 0),
    ("18", "", 0),
    ("$(1,1),(3,2)$", "The pairs are $(3,2), (1,1)$", 1),
    ("$(1,1),(3,2)$", "The numbers are $1, 1, 3, 2$", 0),
    # Powers of ten.
    (0.00005, r"\boxed{0.00005}", 1),
    (0.00005, r"\boxed{5 \times 10^{-5}}", 1),
    (0.00005, "It is 5e-5.", 1),
    (0.00005, r"\boxed{0.00006}", 0),
    (1e16, r"\boxed{10^{16}}", 1),
    (1e16, "It is 10000000000000000", 1),
    (1e16, r"\boxed{10^{15}}", 0),
    ("6.02e23", r"\boxed{6.02 \times 10^{23}}", 1),
    ("6.02e23", "about 6.02 × 10^23", 1),
    ("6.02e23", r"\boxed{6.03 \times 10^{23}}", 0),
    ("6.02e23", r"\boxed{6.02}", 0),
    ("12345678901234567890", r"\boxed{12345678901234567891}", 0),
    (r"6.02 \times 10^{23}", "602000000000000000000000", 1),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "completion", "right"), FORMS)
def test_forms(gold, completion, right):
    problem = Problem("", gold_text(gold))
    task = Maths(ProblemRows("rows", {"train": ROWS, "test": ROWS}, lambda split, i: f"row {i}"))
    assert task.score(problem, completion) == right, stated_answer(completion)
    assert Benchmark("", "", [problem]).score(problem, completion) == right


@pytest.mark.parametrize("number", ["0.00005", "1e16", '"6.02e23"', "1e-7", '"5E+3"', "1e400"])
def test_gold_numbers_of_json_files(number):
    """`json` reads 0.00005 as a float that prints as 5e-05; what is too large for one is no gold answer."""
    gold = gold_text(json.loads(number))
    assert "e" not in gold.replace(r"\boxed", "").lower()
    assert (gold == "") == (number == "1e400")


def test_the_same_text_is_taken_by_tasks_that_are_no_maths():
    assert final_answer("<think><answer>1</answer></think> 2") == "2"
    assert final_answer("1</think><answer>2</answer>") == "2"
    assert final_answer("<think>1") == ""
    assert final_answer("<think>1</think>") == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [("59", "59"), ("The largest of 18, 59, 44 is 59.", "59"), ("It is **1,250**!", "1250"), ("-3", "-3"),
     ("1.5", "1.5"), ("18,59,44", "44"), ("<think>7</think>no", None), ("", None), ("5<answer>6</answer>", "6")],
)  # fmt: skip
def test_the_last_number(text, number):
    assert last_number(text) == number
