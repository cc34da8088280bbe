"""README and docs/ are true: what they tell people to type exists, links lead somewhere, and what is named is there."""

from __future__ import annotations

import html
import re
import textwrap

import page_checks
import pages
import pytest

PROJECT = page_checks.Project(pages.ROOT)
PAGES = {page.path: page for page in pages.read_pages()}
README_LINES = 150
CHECKS = [
    page_checks.check_blocks,
    page_checks.check_commands,
    page_checks.check_names,
    page_checks.check_tables,
    page_checks.check_messages,
    page_checks.check_paths_of_machines,
]


def told(found: list[str]) -> str:
    return "\n".join(["", *found])


# --- The pages


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_true(path, check):
    found = check(PAGES[path], PROJECT)
    assert not found, told(found)


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    found = page_checks.check_links(PAGES[path], PAGES, PROJECT)
    assert not found, told(found)


def test_every_page_is_found_by_links():
    found = page_checks.check_reachable(PAGES)
    assert not found, told(found)


@pytest.mark.parametrize("path", sorted((pages.ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=lambda path: path.name)
def test_a_form_asks_for_commands_that_exist(path):
    asked = "\n".join(re.findall(r"description: (.*)", path.read_text(encoding="utf-8")))
    form = pages.parse(path.name, asked)
    found = page_checks.check_commands(form, PROJECT) + page_checks.check_names(form, PROJECT)
    assert not found, told(found)


@pytest.mark.parametrize("path", sorted((pages.ROOT / "docs/images").iterdir()), ids=lambda path: path.name)
def test_a_picture_is_shown_and_of_nobodys_machine(path):
    links = {target.rpartition("/")[2] for one in PAGES.values() for _, target in one.links}
    assert path.name in links, "no page shows it"
    words = html.unescape(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")))
    found = page_checks.check_paths_of_machines(pages.Page(path.name, words), PROJECT)
    assert not found, told(found)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("README.md", page_checks.AGENTS),
        ("docs/your-data.md", page_checks.AGENTS),
        ("docs/status.md", PROJECT.specs["run_notify_on"]["choices"]),
        ("docs/ssh-hosts.md", [f"hooks/{name}.yml" for name in page_checks.hooks.NAMES]),
    ],
)
def test_a_page_has_all_that_it_lists(path, names):
    assert set(names) <= {code for _, code in PAGES[path].codes}


def test_the_readme_is_an_overview():
    found = page_checks.check_length(PAGES["README.md"], README_LINES)
    assert not found, told(found)


def test_a_first_training_is_run_as_it_stands():
    """Where no block is marked, tests/e2e/test_docs.py runs nothing, and nobody would notice."""
    run = [command.text for block in PAGES["docs/quick-start.md"].blocks if block.runs == 0
           for command in block.commands()]  # fmt: skip
    assert "make train role=witness" in run


# --- The checks can fail


def page(text: str, path: str = "docs/page.md") -> pages.Page:
    return pages.parse(path, textwrap.dedent(text))


def commands(text: str, marker: str = "needs: a GPU") -> pages.Page:
    """Make a page with one block of commands."""
    return page(f"In `.venv/bin`.\n\n<!-- {marker} -->\n```sh\n{text}\n```\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("```\nmake train\n```", "1: a block of «»; say what it is"),
        ("```bash\nmake train\n```", "1: a block of «bash»; say what it is"),
        ("text\n\n    make train\n", "3: this is code because it is indented"),
        ("```sh\nmake train\n```", "1: nothing says how these commands are known to work; put <!-- run -->"),
        ("<!-- run -->\n\n```sh\nmake train\n```", "3: nothing says how these commands are known to work"),
        ("<!-- runs -->\n```sh\nmake train\n```", "2: «runs» is no kind of block"),
        ("<!-- run: rc=two -->\n```sh\nmake train\n```", "2: «run: rc=two» is no kind of block"),
        ("<!-- needs: a friend -->\n```sh\nmake train\n```", "2: it needs «a friend»; known is a GPU"),
        ("<!-- tested by: tests/unit/test_none.py -->\n```sh\nmake train\n```",
         "2: it is tested by tests/unit/test_none.py, which does not exist"),
        ("<!-- tested by: tests/unit/test_rules.py -->\n```sh\nansible-playbook playbooks/reap.yml\n```",
         "2: it is tested by tests/unit/test_rules.py, which does not mention reap.yml"),
        ("<!-- tested by: tests/unit/test_rules.py -->\n```sh\nmake soak\n```", "which does not mention make soak"),
        ("<!-- tested by: tests/unit/test_rules.py -->\n```sh\nansible localhost -m wandb_sync -a path=x\n```",
         "which does not mention wandb_sync"),
        ("<!-- tested by: .ci/run, tests/unit/test_rules.py -->\n```sh\nmake check\n```",
         "2: tests/unit/test_rules.py mentions nothing of it"),
        ("<!-- run -->\n```text\nready\n```", "2: «run» stands above a block of text; only sh is run"),
        ("```json\n{'a': 1}\n```", "1: this is no JSON: "),
        ("```mermaid\nflowchrt TD\n```", "1: this is no chart"),
        ("```yaml\na: [1\n```", "1: this is no YAML: "),
        ("```yaml\nhosts: {a: {run_backend: nohup}}\n```", "1: run_backend is «nohup»; it takes auto"),
        ("```yaml\nhosts: {a: {pod_gpu: [L40S]}}\n```", "1: there is no option pod_gpu; did you mean «pod_gpus»?"),
    ],
)  # fmt: skip
def test_a_bad_block_is_found(text, sentence):
    [found] = page_checks.check_blocks(page(text), PROJECT)
    assert found.startswith("docs/page.md:")
    assert sentence in found


@pytest.mark.parametrize(
    "text",
    [
        "<!-- run -->\n```sh\nmake train\n```",
        "<!-- run: rc=2 -->\n```sh\nmake train\n```",
        "<!-- needs: an account -->\n```sh\nmake train\n```",
        "<!-- tested by: tests/molecule/newcomer -->\n```sh\nmake train role=witness\n```",
        "<!-- tested by: tests/e2e/test_fleet.py, tests/e2e/test_pods.py -->\n```sh\nansible-playbook train.yml\n```",
        "<!-- tested by: tests/molecule/training-image -->\n```sh\nmake image IMAGE=a:1\n```",
        "<!-- tested by: .ci/run -->\n```sh\nmake check\nmake test\nmake unit\n```",
        "<!-- tested by: .ci/run, tests/molecule/newcomer -->\n```sh\nmake check\nmake train\n```",
        "- a list\n\n  <!-- run -->\n  ```sh\n  make train\n  ```",
        "```text\nanything, {at: all\n```",
        "```yaml\nhosts: {a: {run_backend: tmux, my_own: 1}}\n```",
        "```yaml\n- name: Look\n  training_log: {run_dir: /data/x}\n  register: x\n```",
    ],
)
def test_a_good_block_is_left_alone(text):
    assert page_checks.check_blocks(page(text), PROJECT) == []


PLAY = "ansible-playbook train.yml "


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("make trian role=witness", "there is no make target «trian»; did you mean «train»?"),
        ("make train rolle=witness", "make knows no variable rolle; did you mean «role»?"),
        ("make train role=witnes", "there is no agent «witnes»; did you mean «witness»?"),
        ("make train ARGS='-e frehs=true'", "there is no option frehs; did you mean «fresh»?"),
        ("make unit ARGS='tests/unit/test_none.py -k x'", "there is no tests/unit/test_none.py"),
        ("make molecule SCENARIO=nobody", "SCENARIO=nobody names tests/molecule/nobody, which does not exist"),
        ("make mutants MODULE=planning/none", "names module_utils/lora_forge/planning/none.py, which does not exist"),
        ("ansible-playbook playbooks/trian.yml", "there is no playbook playbooks/trian.yml; did you mean"),
        ("ansible-playbook -i inventory/none.yml train.yml", "there is no inventory inventory/none.yml"),
        ("ansible-playbook -i inventory/ssh.yml train.yml", "is no inventory inventory/ssh.yml; where an example"),
        (PLAY + "--chekc", "ansible-playbook does not take this: "),
        (PLAY + "-e role", "-e role gives no option a value"),
        (PLAY + "-e role=witness -e freshly=true", "there is no option freshly; did you mean «fresh»?"),
        (PLAY + "-e role=witness,nobody", "there is no agent «nobody»"),
        (PLAY + "-e run_backend=nohup", "run_backend is «nohup»; it takes auto, systemd, tmux, process"),
        (PLAY + "-e run_lane=cpu", "run_lane is called run_lanes now"),
        (PLAY + "-e run_stop_timeout=soon", "run_stop_timeout is «soon»; it takes a whole number"),
        (PLAY + "-e lines=many", "lines is «many»; it takes a whole number"),
        (PLAY + "-e log=axolotl", "log is «axolotl»; it takes train, supervisor"),
        (PLAY + "-e detach=later", "detach is «later»; it takes true or false"),
        (PLAY + """-e '{"run_notify_on": [never]}'""", "run_notify_on holds «never»"),
        (PLAY + """-e '{"recipe": {"lora_rank": 8}}'""", "a recipe has no key lora_rank"),
        (PLAY + """-e '{"recipe": {"lora_r": "many"}}'""", "the recipe's lora_r: 'many' is not"),
        (PLAY + """-e '{"recipe": 8}'""", "recipe is «8»; it takes a mapping"),
        (PLAY + """-e '{"sweep": {"lora_rank": [8]}}'""", "a recipe has no key lora_rank"),
        (PLAY + """-e '{"sweep": [{"lora_r": "x"}]}'""", "the recipe's lora_r"),
        (PLAY + "-e '{\"recipe\": {'", "is no mapping"),
        (PLAY + "-e 'role=witness", "No closing quotation"),
        ("ansible localhost -m wandb_snyc -a path=x", "there is no module wandb_snyc; did you mean «wandb_sync»?"),
        ("ansible localhost -m wandb_sync -a folder=x", "the module wandb_sync has no option folder"),
        ("ansible-doc wandb_snyc", "there is no module wandb_snyc"),
        ("ansible-doc -t role traner", "there is no role traner"),
        ("$ make train", "$ is no known program"),
        ("docer push x", "docer is no known program; did you mean «docker»?"),
        ("python3 benchmarks/gpu/none.py", "there is no benchmarks/gpu/none.py in the project"),
        ("tests/none.sh", "there is no program tests/none.sh"),
        ("cd . && make trian", "there is no make target «trian»"),
        ("ansible-playbook train.yml -e move=<host>", "bash takes <…> as a redirection"),
    ],
)  # fmt: skip
def test_a_bad_command_is_found(command, sentence):
    [found] = page_checks.check_commands(commands(command), PROJECT)
    assert found.startswith("docs/page.md:5: ")
    assert sentence in found


@pytest.mark.parametrize(
    "command",
    [
        "make",
        "make PYTHON=python3.12 train role=witness,mayor ARGS='-e fresh=true'",
        "make unit ARGS='tests/unit/test_placement.py -k lane'",
        "make mutants MODULE=planning/recipe ARGS='--keep /tmp/m --show'",
        "export RUNPOD_API_KEY=… && make setup",
        ".venv/bin/ansible-playbook -i gpu-1.example.org, train.yml -e role=all  # one host's",
        "cp inventory/ssh.example.yml inventory/ssh.yml\nansible-playbook -i inventory/ssh.yml train.yml",
        PLAY + """\\\n  -e role=witness \\\n  -e '{"recipe": {"lora_r": 32, "learning_rate": 1.0e-4}}'""",
        """ansible-playbook playbooks/sweep.yml -e role=witness -e '{"sweep": [{"lora_r": 16}, {"num_epochs": 4}]}'""",
        "ansible-playbook train.yml -e datasets_dir=/data/x -e watch_unreachable_timeout=60 -e run_gpus=2 >log 2>&1",
        "WANDB_BASE_URL=x ansible localhost -m wandb_sync -a 'path=output/adapters' | tail",
        "ansible localhost -m ping; ansible-doc wandb_run_info; ansible-inventory -i inventory/local.yml --graph",
        "cat <<'END' >x.jsonl\nmake trian\nEND",
        "ls output/adapters .trainer/runs",
    ],
)  # fmt: skip
def test_a_good_command_is_left_alone(command):
    assert page_checks.check_commands(commands(command), PROJECT) == []


def test_what_is_to_fail_may_name_what_is_not_there():
    assert page_checks.check_commands(commands(PLAY + "-e role=witnes", "run: rc=2"), PROJECT) == []
    assert page_checks.check_commands(commands(PLAY + "-e role=witnes", "run"), PROJECT) != []


def test_what_is_run_leaves_nothing_to_be_filled_in():
    [found] = page_checks.check_commands(commands(PLAY + "-e output_dir=…", "run"), PROJECT)
    assert "it is run as it stands, and holds «…»" in found
    assert page_checks.check_commands(commands(PLAY + "-e output_dir=…"), PROJECT) == []


def test_a_page_says_where_commands_are_found():
    [found] = page_checks.check_commands(page("<!-- run -->\n```sh\nansible-playbook train.yml\n```"), PROJECT)
    assert found == (
        "docs/page.md:2: nothing says where ansible-playbook is; say once that .venv/bin is on the PATH"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("-e freshly=true", "there is no option freshly"),
        ("-e freshly", "there is no option freshly"),
        ("-e run_wandb=on|disabled", "run_wandb is «on»"),
        ("-i inventory/none.yml -e pod=pod-1", "there is no inventory inventory/none.yml"),
        ("playbooks/plan.yml -e role=witnes", "there is no agent «witnes»"),
        ("make trian", "there is no make target «trian»"),
        ("ansible localhost -m wandb_snyc", "there is no module wandb_snyc"),
    ],
)
def test_a_bad_command_in_a_sentence_is_found(code, sentence):
    [found] = page_checks.check_commands(page(f"One.\nTwo `{code}`."), PROJECT)
    assert found.startswith("docs/page.md:2: ")
    assert sentence in found


@pytest.mark.parametrize(
    "code",
    ["-e", "-e role", "-e role=", "-e move=<host>", "-e '{\"recipe\": {…}}'", "-e run_notify_form=json|slack", "-i",
     "-i inventory/ssh.yml", "-e run_id=…", "make", "make lock ARGS=--upgrade", "--check", "train.yml -e detach=true"],
)  # fmt: skip
def test_a_good_command_in_a_sentence_is_left_alone(code):
    assert page_checks.check_commands(page(f"Say `{code}`."), PROJECT) == []


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("playbooks/trian.yml", "there is no playbooks/trian.yml in the project; did you mean «playbooks/train.yml»?"),
        ("module_utils/lora_forge/none.py", "there is no module_utils/lora_forge/none.py"),
        ("planning/none.py", "there is no planning/none.py"),
        ("configs/agents/<agent>.json", "there is no configs/agents/<agent>.json"),
        ("tests/none/", "there is no tests/none/"),
        ("inventory/hooks/before_lunch.yml", "there is no inventory/hooks/before_lunch.yml"),
        ("nonesuch.py", "nothing is called nonesuch.py"),
        ("e2e/test_none.py", "there is no tests/e2e/test_none.py"),
        ("test_that_nobody_wrote", "nothing is called test_that_nobody_wrote"),
        ("warmup_ration", "nothing is called warmup_ration; did you mean «warmup_ratio»?"),
        ("run_backnd", "there is no option run_backnd; did you mean «run_backend»?"),
        ("run_lane", "run_lane is called run_lanes now"),
        ("run_backend=nohup", "run_backend is «nohup»"),
        ("run_gpus: many", "run_gpus is «many»; it takes a whole number"),
        ("LORA_FORGE_NOWHERE_TO_GO", "nothing reads the variable LORA_FORGE_NOWHERE_TO_GO"),
    ],
)
def test_a_bad_name_is_found(code, sentence):
    [found] = page_checks.check_names(page(f"| a | b |\n|---|---|\n| c | `{code}` |"), PROJECT)
    assert found.startswith("docs/page.md:3: ")
    assert sentence in found


def test_an_old_name_may_stand_beside_the_new_one():
    assert page_checks.check_names(page("`run_lane` is `run_lanes` now"), PROJECT) == []
    assert page_checks.check_names(page("`run_lane` is it\n`run_lanes` now"), PROJECT) != []


def test_a_variable_that_nothing_reads_is_found_in_commands():
    [found] = page_checks.check_names(commands("export LORA_FORGE_NOWHERE_TO_GO=1"), PROJECT)
    assert found == "docs/page.md:4: nothing reads the variable LORA_FORGE_NOWHERE_TO_GO"


@pytest.mark.parametrize(
    "code",
    ["playbooks/train.yml", "roles/*/meta/argument_specs.yml", "configs/agents/<agent>.yml", "planning/recipe.py",
     "output/adapters/<agent>/latest", ".pods/owner", "inventory/ssh.yml", "inventory/hooks/before_provision.yml",
     "tests/unit/test_docs.py::test_a_bad_name_is_found", "e2e/test_pods.py",
     "test_a_pod_is_had_all_the_same", "supervisor.py", "train.log", "run_backend", "run_gpus: 4",
     "run_hosts", "run_hook", "run_id", "LORA_FORGE_NOTIFY_URL", "WANDB_API_KEY", "RIVALS", "a/b", "TCP/IP"],
)  # fmt: skip
def test_a_good_name_is_left_alone(code):
    assert page_checks.check_names(page(f"Say `{code}`."), PROJECT) == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("`trainer_rsync_timeout` | int | 90", "the default of trainer_rsync_timeout is 60, and not 90"),
        ("`pod_volume`, `pod_disk` | int | 0 and 40", "the default of pod_disk is 60, and not 40"),
        ("`pod_clouds` | list | `[COMMUNITY]`, by far", "the default of pod_clouds is ['SECURE'], and not [COMMUNITY]"),
        ("`pod_keep` | str | `false`", "pod_keep is of the type bool, and not str"),
    ],
)
def test_a_bad_row_of_a_table_is_found(row, sentence):
    head = "| variable | type | default | meaning |\n|---|---|---|---|\n"
    assert page_checks.check_tables(page(f"{head}| {row} | x |"), PROJECT) == [f"docs/page.md:3: {sentence}"]


def quoting(message: str) -> pages.Page:
    return page(
        f"| message | what to do |\n|---|---|\n| `{message}` | no `such words` |\n\n| a |\n|---|\n| `or such` |"
    )


@pytest.mark.parametrize(
    "message",
    ["there is no such agent «witnes»", "… was launched at gpu-1", "… is lost; nothing at all was ever lost"],
)  # fmt: skip
def test_a_message_that_nobody_prints_is_found(message):
    [found] = page_checks.check_messages(quoting(message), PROJECT)
    assert found.startswith("docs/page.md:3: nothing says «")


@pytest.mark.parametrize(
    "message",
    ["there is no agent «witnes»; did you mean «witness»?", "… shares 3 conversation(s) with …",
     "gpu-1 is not known by its key, and nothing was sent to it", "RUNPOD_API_KEY is not set"],
)  # fmt: skip
def test_a_message_that_is_printed_is_left_alone(message):
    assert page_checks.check_messages(quoting(message), PROJECT) == []


SITE = {
    "README.md": page("[in](docs/index.md)\n", "README.md"),
    "docs/index.md": page(
        "# W&B and more\n## The same\n## The same\n## One – two\n<a id='own'></a>\n", "docs/index.md"
    ),
}


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("none.md", "none.md leads nowhere: there is no docs/none.md"),
        ("../README.md", "../README.md is no page of the site; name README.md in backticks instead"),
        ("../../x.md", "../../x.md leads out of the checkout"),
        ("/docs/index.md", "leads out of the checkout"),
        ("index.md#none", "index.md#none: docs/index.md has no such heading on GitHub"),
        ("#none", "#none: docs/page.md has no such heading on GitHub"),
        ("index.md#one--two", "GitHub and MkDocs name this heading in two ways"),
        ("index.md#the-same-1", "GitHub and MkDocs name this heading in two ways"),
        ("index.md#one-two", "has no such heading on GitHub; did you mean «one--two»?"),
        ("none.png", "none.png leads nowhere"),
    ],
)
def test_a_dead_link_is_found(link, sentence):
    for text in (f"\n[text]({link})", f"\n![text]({link})", f"\n<img src='{link}'>"):
        one = page(text)
        [found] = page_checks.check_links(one, {**SITE, one.path: one}, PROJECT)
        assert found.startswith("docs/page.md:2: ")
        assert sentence in found


@pytest.mark.parametrize("anchor", ["", "#wb-and-more", "#the-same", "#own"])
def test_a_live_link_is_left_alone(anchor):
    one = page(f"[a](index.md{anchor}) [b](https://example.org/x#y) [c](#d) [e](mailto:f@example.org)\n\n# d")
    assert page_checks.check_links(one, {**SITE, one.path: one}, PROJECT) == []


def test_a_page_that_nothing_leads_to_is_found():
    lost = page("[in](index.md)", "docs/lost.md")
    assert page_checks.check_reachable(SITE) == []
    [found] = page_checks.check_reachable({**SITE, lost.path: lost})
    assert found.startswith("docs/lost.md:1: no links lead here from README.md")


@pytest.mark.parametrize("path", ["/home/alice/lora-forge", "/root/x", f"{pages.ROOT}/output", "/Users/me"])
def test_a_path_of_a_machine_is_found(path):
    [found] = page_checks.check_paths_of_machines(page(f"One\n```text\nin {path} it is\n```\n"), PROJECT)
    assert found.startswith("docs/page.md:3: ")
    assert "is a path of some machine" in found


def test_a_path_of_anybody_is_left_alone():
    text = "`/data/x` /workspace/lora-forge https://a.org/root/x a/home/b ../root/x ~/root output/root/x <b>x</b> 1/2"
    assert page_checks.check_paths_of_machines(page(text), PROJECT) == []


def test_a_page_that_is_too_long_is_found():
    assert page_checks.check_length(page("a\n" * 150), 150) == []
    assert page_checks.check_length(page("a\n" * 151), 150) == [
        "docs/page.md:151: 151 lines; it may have 150. Move what is no overview to a page of docs/"
    ]


def test_blocks_are_taken_apart_as_bash_would():
    block = page(
        """
        <!-- run: rc=2 -->
        ```sh
        # first
        make a && sudo make b | tail -1 2>/dev/null   # why

        make c \\
          d 'e
        f'
        cat <<END
        it's
        END
        last
        ```
        """
    ).blocks[0]
    assert (block.line, block.runs) == (3, 2)
    found = [*block.commands()]
    assert [one.line for one in found] == [5, 7, 10, 13]
    assert found[1].text == "make c \\\n  d 'e\nf'"
    assert [one.parts() for one in found] == [
        [["make", "a"], ["sudo", "make", "b"], ["tail", "-1"]],
        [["make", "c", "d", "e\nf"]],
        [["cat"]],
        [["last"]],
    ]
