"""Builds the native core with CMake. Without a usable compiler the install is pure Python, and says why."""

import json
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        module.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve() / f"native-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        log = build / "build.log"
        try:
            with log.open("w") as out:
                for step in (self.configure(build, module), ["cmake", "--build", str(build)]):
                    subprocess.run(step, check=True, stdout=out, stderr=subprocess.STDOUT)
            report = json.loads((build / "build.json").read_text())
        except (OSError, subprocess.CalledProcessError) as error:
            report = {"error": self.diagnose(log, error)}
            self.warn(f"vimae_kernels is installed without its native core: {report['error']}")
        # `python -m vimae_kernels` shows this file, so that a missing core is never a riddle.
        (module.parent / "_build.json").write_text(json.dumps(report))

    def configure(self, build: Path, module: Path) -> list[str]:
        import pybind11

        return [
            "cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DVIMAE_PYTHON_MODULE={module}",
            "-DBUILD_TESTING=OFF",
        ]  # fmt: skip

    def diagnose(self, log: Path, error: Exception) -> str:
        text = log.read_text() if log.exists() else ""
        if "No CMAKE_CXX_COMPILER" in text or "CMAKE_CXX_COMPILER not set" in text:
            return (
                "no C++ compiler was found when the package was installed "
                "(install GCC or Clang, then pip install again)"
            )
        errors = [line.strip() for line in text.splitlines() if "error" in line.lower()]
        return "; ".join(errors[:3]) or str(error)

    def copy_extensions_to_source(self) -> None:
        """For an editable install: the module and its report, or the report alone."""
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            source = ROOT / self.get_ext_filename(ext.name)
            # A module left over from an earlier build would outlive the compiler that made it.
            source.unlink(missing_ok=True)
            if built.exists():
                self.copy_file(str(built), str(source))
            self.copy_file(str(built.parent / "_build.json"), str(source.parent / "_build.json"))


setup(ext_modules=[Extension("vimae_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
