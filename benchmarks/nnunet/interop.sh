#!/usr/bin/env bash
# Stock nnU-Net from weights of dae3d, on the hippocampus scans of the Decathlon: pre-train a few steps, export,
# train two short epochs, predict. Shows that weights are taken, not how good they are.
#
#     benchmarks/nnunet/interop.sh DATA WORK [MASTER]
#
# With MASTER, a checkout of nnU-Net's master, also that its trainer for pre-trained weights takes them. DATA has images/ and labels/ with files of one name each (hippocampus_001.nii.gz); WORK is a folder to make. Runs
# in the active environment, which has dae3d and nnunetv2 2.8.1.
set -euo pipefail
data=$(realpath "$1"); here=$(realpath "$(dirname "$0")"); mkdir -p "$2"; work=$(realpath "$2")
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
export nnUNet_n_proc_DA=1 nnUNet_def_n_proc=1 nnUNet_compile=f OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export nnUNet_extTrainer=$work/trainers PYTHONPATH=$work/trainers${PYTHONPATH:+:$PYTHONPATH} MPLBACKEND=Agg
set_name=Dataset004_Hippocampus; plans=nnUNetResEncUNetMPlans
mkdir -p "$nnUNet_raw/$set_name"/{imagesTr,labelsTr,imagesTs} "$work/trainers"
cp "$here/short_trainers.py" "$work/trainers/"

# 24 labelled cases to train on, two more to predict. One image of the data set has other units and is left out.
number=0
for label in $(ls "$data/labels" | grep -v _044); do
    number=$((number + 1)); [ $number -le 26 ] || break
    if [ $number -le 24 ]; then to=Tr; cp "$data/labels/$label" "$nnUNet_raw/$set_name/labelsTr/"; else to=Ts; fi
    cp "$data/images/$label" "$nnUNet_raw/$set_name/images$to/${label%.nii.gz}_0000.nii.gz"
done
echo '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1, "posterior": 2},
 "numTraining": 24, "file_ending": ".nii.gz"}' > "$nnUNet_raw/$set_name/dataset.json"
nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -pl nnUNetPlannerResEncM -np 1

# Pre-train both backbones for some steps on the same images, as nnU-Net scales them.
run() { echo "+ $*"; "$@"; }
run dae3d index "$nnUNet_raw/$set_name/imagesTr" --modality t1 --out "$work/manifest.jsonl"
run dae3d prepare "$work/manifest.jsonl" --out "$work/store"
common=(--data "$work/store" --max-steps 12 --batch-size 2 --save-every 12 --val-every 12 --log-every 4
    --val-crops 1 --workers 0 --intensity t1=zscore)
run dae3d pretrain --backbone resenc --roi 40 56 40 "${common[@]}" --out "$work/resenc"
run dae3d pretrain --config small-cpu --roi 64 "${common[@]}" --out "$work/swin"
run dae3d export --weights "$work/resenc" --format nnunet --plans "$nnUNet_preprocessed/$set_name/$plans.json" \
    --out "$work/resenc.pth"
run dae3d export --weights "$work/resenc" --format nnssl --out "$work/nnssl.pth"
run dae3d export --weights "$work/swin" --format nnunet-trainer --out "$work/trainers"

export nnUNet_n_proc_DA=0
run nnUNetv2_train 4 3d_fullres 0 -p $plans -tr nnUNetTrainerShort -device cpu -pretrained_weights "$work/resenc.pth"
run nnUNetv2_train 4 3d_fullres 0 -p $plans -tr nnUNetTrainerDae3dShort -device cpu
for trainer in nnUNetTrainerShort nnUNetTrainerDae3dShort; do
    run nnUNetv2_predict -d 4 -c 3d_fullres -f 0 -p $plans -tr $trainer -i "$nnUNet_raw/$set_name/imagesTs" \
        -o "$work/predicted/$trainer" -device cpu -npp 1 -nps 1 --disable_tta
    ls "$work/predicted/$trainer"/*.nii.gz
done

[ -n "${3:-}" ] || exit 0
export PYTHONPATH=$(realpath "$3"):$PYTHONPATH
like() { run python -c "from nnunetv2.experiment_planning.like_nnssl import $1 as f; f()" "${@:2}"; }
like preprocess_like_nnssl_entrypoint -d 4 -n dae3d -pc "$work/nnssl.pth" -am like_pretrained -np 1
planned=$(basename "$(ls "$nnUNet_preprocessed/$set_name"/ptPlans__dae3d____*.json)" .json)
run python "$here/check_pretrained.py" "$work/nnssl.pth" "$planned"
