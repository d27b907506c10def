"""`calibrate recipes`: list, show and schema."""

from __future__ import annotations

import json
from typing import Any

import click

from .group import cli, json_option


def _complete(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[Any]:
    from ..recipe.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(typed)]


@cli.group()
def recipes() -> None:
    """The recipes that ship with the package."""


@recipes.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """Names, the models each is for, and what it does."""
    from ..recipe.recipe import load_recipe, recipe_names

    found = [load_recipe(name) for name in recipe_names()]
    rows = [{"name": r.name, "models": list(r.models), "description": r.description} for r in found]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max(len(row["name"]) for row in rows) + 2
    for row in rows:
        models = f" ({', '.join(row['models'])})" if row["models"] else ""
        click.echo(f"{row['name']:<{width}}{row['description']}{models}")


@recipes.command()
@click.argument("recipe", shell_complete=_complete)
@json_option
def show(recipe: str, as_json: bool) -> None:
    """Every setting of a recipe (a name or a YAML file), as YAML that `run --recipe` reads back."""
    from ..recipe.recipe import load_recipe, to_json
    from ..summary import to_yaml

    document = to_json(load_recipe(recipe))
    click.echo(document if as_json else to_yaml(json.loads(document)), nl=as_json)


@recipes.command()
def schema() -> None:
    """JSON Schema of recipe files: with it, editors complete and check them."""
    from ..recipe.recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=1))
