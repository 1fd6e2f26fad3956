"""`python -m irattack`: one cell from start to end, or with -m a cell for each combination."""

from irattack.cli import one_sentence, show_whole_config

with one_sentence():
    import hydra
    from omegaconf import DictConfig

    from irattack.models.zoo import CONF
    from irattack.pipeline import Cell, run
    from irattack.report import render
    from irattack.settings import check, register_resolvers


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> None:
    """Checks one configuration, runs it, prints its rows."""
    with one_sentence():
        check(cfg)
        print(render(run(Cell(cfg))))


def main() -> None:
    """The entry point."""
    show_whole_config()
    register_resolvers()
    with one_sentence():
        job()


if __name__ == "__main__":
    main()
