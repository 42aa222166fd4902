"""What bench.json holds beside pytest-benchmark's own: the torch it was made with; not every single round."""

import torch


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["torch"] = torch.__version__


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
